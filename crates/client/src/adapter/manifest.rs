//! What an adapter's tables are, as JSON.

use std::fs;
use std::io;
use std::path::Path;

use petals_protocol::{Injection, ModelId, Module, Modules, WeightChange};
use serde::{Deserialize, Serialize};

use super::labels::LabelMap;
use super::names::{Task, TuningMode, injection_name};
use super::tables::TableShape;
use super::tensor_file::TensorFileError;
use super::{AdaptedModel, AdapterError, MANIFEST_FILE};

/// How text became tokens in training; evaluation does the same unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TextRules {
    /// Most tokens of an example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Whether the end-of-sequence token follows every text.
    #[serde(default)]
    pub append_eos: bool,
}

/// Which matrices have tables of their own. PEFT's names do not say where a tensor of the checkpoint is several of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedWeights {
    /// Our names of the matrices.
    pub targets: Vec<String>,
    /// The rank of low-rank tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
}

impl ChangedWeights {
    pub(super) fn of(change: WeightChange) -> Option<Self> {
        let (modules, rank) = match change {
            WeightChange::None => return None,
            WeightChange::LowRank { rank, modules } => (modules, Some(rank)),
            WeightChange::Scales { modules } => (modules, None),
        };
        Some(Self { targets: modules.iter().map(|module| module.name().to_owned()).collect(), rank })
    }

    /// The matrices, as far as they are known.
    pub(super) fn modules(&self) -> Modules {
        self.targets.iter().filter_map(|name| name.parse::<Module>().ok()).collect()
    }
}

/// What an adapter's tables are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterManifest {
    /// Version of this manifest.
    pub version: u32,
    /// The model that the adapter was trained on; PEFT's own adapters do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// `ptune` or `deep_ptune`.
    pub mode: TuningMode,
    /// What each block does to the prefix.
    #[serde(with = "injection_name")]
    pub injection: Injection,
    /// Rows of the prefix.
    pub prefix_len: usize,
    /// What the adapter was trained for.
    pub task: Task,
    /// Classes of the score head, in the order of its rows; seq-cls only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelMap>,
    /// Optimiser steps made.
    pub step: u64,
    /// How text became tokens.
    #[serde(default)]
    pub text: TextRules,
    /// What is changed of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<ChangedWeights>,
}

impl AdapterManifest {
    /// The version that this program writes and reads.
    pub const VERSION: u32 = 1;

    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a manifest has only texts, numbers and lists")
    }

    /// Checks the manifest against the tables beside it and the model at hand.
    pub(super) fn check(&self, shape: &TableShape, model: &AdaptedModel) -> Result<(), AdapterError> {
        if self.version != Self::VERSION {
            return Err(AdapterError::Version(self.version));
        }
        if let Some(trained) = self.model.as_ref().filter(|id| id.fingerprint() != model.id.fingerprint()) {
            return Err(AdapterError::WrongModel { adapter: trained.clone(), model: model.id.clone() });
        }
        agree("mode", &self.mode, &shape.mode())?;
        agree("prefix length", &self.prefix_len, &shape.prefix_len)?;
        agree("task", &self.task, &shape.task())?;
        agree("number of labels", &self.labels.as_ref().map_or(0, LabelMap::len), &shape.labels.unwrap_or(0))?;
        agree("injection", &format!("{:?}", self.injection), &format!("{:?}", shape.injection))
    }
}

fn agree<T: PartialEq + ToString>(what: &'static str, manifest: &T, tables: &T) -> Result<(), AdapterError> {
    if manifest == tables {
        return Ok(());
    }
    Err(AdapterError::Contradiction { what, manifest: manifest.to_string(), tables: tables.to_string() })
}

/// The manifest from the metadata of the tables' file, else from the file beside it.
pub(super) fn read(directory: &Path, metadata: Option<String>) -> Result<Option<AdapterManifest>, AdapterError> {
    let path = directory.join(MANIFEST_FILE);
    let text = match metadata {
        Some(text) => text,
        None => match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TensorFileError::Read { path, source }.into()),
        },
    };
    let malformed = |source| AdapterError::Json { what: "the manifest", path: directory.to_owned(), source };
    serde_json::from_str(&text).map(Some).map_err(malformed)
}

/// A manifest for tables that came without one.
pub(super) fn of_foreign(shape: &TableShape) -> Result<AdapterManifest, AdapterError> {
    Ok(AdapterManifest {
        version: AdapterManifest::VERSION,
        model: None,
        mode: shape.mode(),
        injection: shape.injection,
        prefix_len: shape.prefix_len,
        task: shape.task(),
        labels: shape.labels.map(LabelMap::numbered).transpose()?,
        step: 0,
        text: TextRules::default(),
        weights: ChangedWeights::of(shape.weights),
    })
}
