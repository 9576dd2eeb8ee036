//! Saved adapters: a directory with the trained tables, a PEFT configuration and a manifest.
//!
//! | file | content |
//! |---|---|
//! | `adapter_model.safetensors` | the tables in f32; the manifest as JSON in its metadata, so that both change at once |
//! | `adapter_config.json` | PEFT's configuration; what PEFT has no kind for, deep prompts and combinations, has one that it refuses |
//! | `petals_adapter.json` | the manifest again, for people and scripts; read only if the metadata lacks it |
//! | `README.md` | the model card, unless somebody else wrote one |
//!
//! Around it is everything that is trained and saved: the `tables` themselves, the `labels` of a classifier, the `names` of tasks and
//! modes, and files that are written whole or not at all (`tensor_file`, `atomic_file`). Apart from tuning because inference
//! needs the same tables, and knows nothing of how they came to be.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use petals_model::{ModelConfig, Projections};
use petals_protocol::{BlockWidths, ModelId};

pub(crate) mod atomic_file;
mod base;
pub(crate) mod card;
mod entry;
pub(crate) mod labels;
mod manifest;
pub(crate) mod merge;
pub(crate) mod method;
mod missing;
pub(crate) mod names;
mod peft;
mod prefix;
mod read;
pub(crate) mod tables;
pub(crate) mod tensor_file;
mod weights;

use atomic_file::{WriteError, write_atomically};
use card::CardDetails;
use labels::LabelMap;
pub use manifest::{AdapterManifest, ChangedWeights, TextRules};
use names::TuningMode;
use tables::{PromptTables, Table};
use tensor_file::{TensorFile, TensorFileError, write_tensors};

/// Name of the file with the tables.
const TENSORS_FILE: &str = "adapter_model.safetensors";
/// Name of the readable copy of the manifest.
const MANIFEST_FILE: &str = "petals_adapter.json";
/// Key of the manifest in the metadata of the tensors' file.
const MANIFEST_KEY: &str = "petals_adapter";
/// Names under which a score head is found, the first one first.
const SCORE_NAMES: [&str; 3] = ["score.weight", "base_model.score.weight", "base_model.model.score.weight"];

/// What an adapter must know of the model it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptedModel {
    /// Identity of the model in the swarm.
    pub id: ModelId,
    /// Where the model's files are, for PEFT's `base_model_name_or_path`.
    pub name_or_path: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Widths of a block's rows.
    pub widths: BlockWidths,
    /// Heads of a block's keys.
    pub key_heads: usize,
    /// Attention heads of a block.
    pub attention_heads: usize,
    /// Heads that PEFT's prefixes have of a block's keys.
    pub cached_key_heads: usize,
    /// The matrices that can be adapted, and what they are called.
    pub projections: Projections,
}

impl AdaptedModel {
    /// What adapters must know of a model with this configuration; `name_or_path` is where its files are.
    pub fn new(id: ModelId, name_or_path: String, config: &ModelConfig) -> Self {
        Self {
            id,
            name_or_path,
            blocks: config.num_hidden_layers,
            widths: config.block_widths(),
            key_heads: config.num_key_value_heads,
            attention_heads: config.num_attention_heads,
            cached_key_heads: config.cached_key_heads(),
            projections: config.projections(),
        }
    }

    /// How often PEFT's prefixes have each head of keys and values.
    fn repeats(&self) -> usize {
        self.cached_key_heads / self.key_heads.max(1)
    }
}

/// Trained tables with the manifest that says what they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What the tables are.
    pub manifest: AdapterManifest,
    /// The tables.
    pub tables: PromptTables,
}

/// Why an adapter could not be loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// There is no adapter in the directory.
    #[error("{} is not an adapter: {found}", path.display())]
    NoAdapter {
        /// The directory.
        path: PathBuf,
        /// What is there instead, and what to do.
        found: String,
    },
    /// The tables' file is not usable, or could not be written.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// Another file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A JSON file or text could not be read.
    #[error("{what} of the adapter in {} is malformed", path.display())]
    Json {
        /// Which.
        what: &'static str,
        /// The adapter's directory.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The manifest is of a later version.
    #[error("the adapter has manifest version {0}, this program knows {known}", known = AdapterManifest::VERSION)]
    Version(u32),
    /// The manifest and the tables do not belong together.
    #[error("the adapter's manifest says {what} {manifest}, but its tables have {tables}")]
    Contradiction {
        /// Which property.
        what: &'static str,
        /// Value in the manifest.
        manifest: String,
        /// Value in the tables.
        tables: String,
    },
    /// The adapter was trained on another model.
    #[error("the adapter was trained on {adapter}, the model given is {model}")]
    WrongModel {
        /// Model of the adapter.
        adapter: ModelId,
        /// Model given.
        model: ModelId,
    },
    /// The adapter was made for another model, and does not fit.
    #[error("the adapter was made for {base}, and its tables do not fit {model}")]
    OtherBase {
        /// Model of the adapter.
        base: String,
        /// Model given.
        model: String,
        /// What does not fit.
        source: Box<TensorFileError>,
    },
    /// A PEFT adapter of a kind that is not known here.
    #[error("a PEFT adapter of type {0} cannot be used: PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA and IA3 can")]
    PeftType(String),
    /// A tensor that adapts something which cannot be adapted here.
    #[error(
        "the adapter has a tensor `{name}`, which is no table of a block of this model: what can be adapted is {known}, and a classifier's head"
    )]
    ForeignTensor {
        /// Its name.
        name: String,
        /// What can be adapted, in words.
        known: String,
    },
    /// Vectors of something that is not scaled here.
    #[error(
        "the adapter's tensor `{name}` scales {what}, and of this model only {known} can be scaled: train IA3 here, where the rest of a fused \
         matrix stays as it is, or in PEFT without this module"
    )]
    ScaledTensor {
        /// Its name.
        name: String,
        /// What it scales that cannot be scaled.
        what: String,
        /// What can be scaled, in words.
        known: String,
    },
    /// Keys and values that differ between heads which share theirs.
    #[error(
        "the adapter's tensor `{name}` has keys and values for {heads} heads, and those of heads that share a key in this model differ: no server \
         can have them so, train the prefix here"
    )]
    DifferentHeads {
        /// Its name.
        name: String,
        /// Heads that it has.
        heads: usize,
    },
    /// One half of a low-rank product.
    #[error("the adapter has a tensor `{name}`, but not the other one of its pair (lora_A and lora_B)")]
    LonelyTensor {
        /// Its name.
        name: String,
    },
    /// A change of weights that no server would take.
    #[error("the adapter's tables cannot be used")]
    Weights(#[source] petals_protocol::WeightChangeError),
    /// PEFT's configuration says something that the model or the tables do not fit.
    #[error("the adapter_config.json of {} has `{key}` {value}: {problem}", path.display())]
    PeftConfig {
        /// The adapter's directory.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why it cannot be used.
        problem: String,
    },
    /// The score head has no sensible number of classes.
    #[error("the score head does not fit its labels")]
    Labels(#[from] labels::LabelError),
}

impl Adapter {
    /// An adapter of tables trained on `model`. `labels` are the classes of the score head.
    pub fn new(
        model: &AdaptedModel,
        tables: PromptTables,
        labels: Option<LabelMap>,
        text: TextRules,
        step: u64,
    ) -> Self {
        let shape = tables.shape();
        let manifest = AdapterManifest {
            version: AdapterManifest::VERSION,
            model: Some(model.id.clone()),
            mode: shape.mode(),
            injection: shape.injection,
            prefix_len: shape.prefix_len,
            task: shape.task(),
            labels,
            step,
            text,
            weights: ChangedWeights::of(shape.weights),
        };
        Self { manifest, tables }
    }

    /// Writes the adapter into a directory, which is created if needed. Every file is replaced atomically.
    ///
    /// # Errors
    /// [`AdapterError::Write`] and [`AdapterError::Tensors`].
    pub fn save(&self, directory: &Path, model: &AdaptedModel) -> Result<(), AdapterError> {
        self.save_described(directory, model, &CardDetails::default())
    }

    /// As [`Self::save`], with a model card that says more than the adapter itself knows.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_described(
        &self,
        directory: &Path,
        model: &AdaptedModel,
        details: &CardDetails,
    ) -> Result<(), AdapterError> {
        let config = peft::config(&self.manifest, &self.tables, model);
        let manifest = self.manifest.to_json();
        write_atomically(&directory.join(peft::CONFIG_FILE), pretty(&config).as_bytes())?;
        let texts = HashMap::from([(MANIFEST_KEY.to_owned(), manifest.to_string())]);
        write_tensors(&directory.join(TENSORS_FILE), &self.tensors(model), texts)?;
        write_atomically(&directory.join(MANIFEST_FILE), pretty(&manifest).as_bytes())?;
        self.describe(directory, model, details)
    }

    /// Writes the model card of an adapter that is saved in `directory`. A README that somebody else wrote stays, with a warning.
    ///
    /// # Errors
    /// [`AdapterError::Write`].
    pub fn describe(&self, directory: &Path, model: &AdaptedModel, details: &CardDetails) -> Result<(), AdapterError> {
        let text = card::text(&self.manifest, self.tables.shape(), model, details);
        Ok(card::write(directory, &text)?)
    }

    fn tensors(&self, model: &AdaptedModel) -> Vec<(String, Vec<usize>, Cow<'_, [f32]>)> {
        let shape = self.tables.shape();
        let mut tensors = Vec::new();
        let of_weights = weights::tensors(&self.tables, &model.projections);
        tensors.extend(of_weights.into_iter().map(|(name, extents, values)| (name, extents, Cow::Owned(values))));
        for table in shape.tables() {
            let (Some(values), Some(extents)) = (self.tables.table(table), shape.of(table)) else { continue };
            match table {
                Table::KeysValues => {
                    let (name, turned) = prefix::tensor(shape, values, model);
                    let extents = vec![shape.prefix_len, turned.len() / shape.prefix_len.max(1)];
                    tensors.push((name.to_owned(), extents, Cow::Owned(turned)));
                }
                Table::LowRankA(_) | Table::LowRankB(_) | Table::Scale(_) => {}
                Table::Score if shape.mode() != TuningMode::DEEP_PTUNE => {
                    // Prompt learning and changed weights have the model at different places of PEFT's.
                    let name = if shape.prefix_len > 0 { SCORE_NAMES[1] } else { SCORE_NAMES[2] };
                    tensors.push((name.to_owned(), extents.clone(), Cow::Borrowed(values)));
                    tensors.push((table.tensor_name().into_owned(), extents, Cow::Borrowed(values)));
                }
                _ => tensors.push((table.tensor_name().into_owned(), extents, Cow::Borrowed(values))),
            }
        }
        tensors
    }

    /// Reads an adapter for `model`: one of ours, one of PEFT's (prompt and prefix tuning, LoRA, IA3), or the tables' file alone.
    ///
    /// Without a manifest the shapes tell what the tables are: as many deep prompts as blocks are added, one less
    /// replaces; labels are `0..classes`. An adapter that fits, though it was made for a model of another name, is loaded with a
    /// warning: it may be the same model under that name.
    ///
    /// # Errors
    /// [`AdapterError`], naming the file, the tensor or the property that is wrong.
    pub fn load(directory: &Path, model: &AdaptedModel) -> Result<Self, AdapterError> {
        let path = directory.join(TENSORS_FILE);
        let foreign = peft::read(directory)?;
        peft::check(&foreign, directory, model)?;
        if !path.is_file() {
            return Err(AdapterError::NoAdapter {
                path: directory.to_owned(),
                found: missing::found(directory, &foreign),
            });
        }
        let file = TensorFile::read(&path)?;
        let manifest = manifest::read(directory, file.metadata(MANIFEST_KEY)?)?;
        let other = base::other(manifest.as_ref(), &foreign, model);
        let changed = manifest.as_ref().and_then(|manifest| manifest.weights.as_ref());
        let tables = read::tables(&file, &foreign, directory, model, changed);
        let tables = tables.map_err(|error| base::explained(error, other.as_ref(), model))?;
        peft::check_tables(&foreign, directory, tables.shape())?;
        let mut manifest = match manifest {
            Some(manifest) => manifest,
            None => manifest::of_foreign(tables.shape())?,
        };
        manifest.weights = ChangedWeights::of(tables.shape().weights);
        manifest.check(tables.shape(), model)?;
        if let Some(base) = other {
            tracing::warn!(
                "the adapter in {} was made for {base}, and the model given is {}: prompts mean nothing to another model, even if \
                 they fit. If it is the same model under another name, nothing is wrong",
                directory.display(),
                model.id.name()
            );
        }
        Ok(Self { manifest, tables })
    }
}

fn pretty(json: &serde_json::Value) -> String {
    format!("{json:#}\n")
}

#[cfg(test)]
mod tests;
