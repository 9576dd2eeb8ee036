//! Saved adapters: a directory with the trained tables, a PEFT configuration and a manifest.
//!
//! | file | content |
//! |---|---|
//! | `adapter_model.safetensors` | the tables in f32; the manifest as JSON in its metadata, so that both change at once |
//! | `adapter_config.json` | for `ptune` the configuration of a PEFT `PROMPT_TUNING` adapter, loadable as it stands |
//! | `petals_adapter.json` | the manifest again, for people and scripts; read only if the metadata lacks it |
//! | `README.md` | a short card |
//!
//! Around it is everything that is trained and saved: the `tables` themselves, the `labels` of a classifier, the `names` of tasks and
//! modes, and files that are written whole or not at all (`tensor_file`, `atomic_file`). Apart from tuning because inference
//! needs the same tables, and knows nothing of how they came to be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use petals_protocol::{Injection, ModelId};

pub(crate) mod atomic_file;
mod base;
pub(crate) mod labels;
mod manifest;
mod missing;
pub(crate) mod names;
mod peft;
pub(crate) mod tables;
pub(crate) mod tensor_file;

use atomic_file::{WriteError, write_atomically};
use labels::LabelMap;
pub use manifest::{AdapterManifest, TextRules};
use names::TuningMode;
use tables::{Parts, PromptTables, Table, TableShape};
use tensor_file::{NamedTensor, TensorFile, TensorFileError, write_tensors};

/// Name of the file with the tables.
const TENSORS_FILE: &str = "adapter_model.safetensors";
/// Name of the readable copy of the manifest.
const MANIFEST_FILE: &str = "petals_adapter.json";
/// Key of the manifest in the metadata of the tensors' file.
const MANIFEST_KEY: &str = "petals_adapter";
/// The name under which PEFT saves and looks for a classifier's head.
const PEFT_SCORE: &str = "base_model.score.weight";
/// Names under which a score head is found, the first one first.
const SCORE_NAMES: [&str; 3] = ["score.weight", PEFT_SCORE, "base_model.model.score.weight"];

/// What an adapter must know of the model it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptedModel {
    /// Identity of the model in the swarm.
    pub id: ModelId,
    /// Where the model's files are, for PEFT's `base_model_name_or_path`.
    pub name_or_path: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Attention heads of a block.
    pub attention_heads: usize,
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
    /// A PEFT adapter of a kind that has no prompt table.
    #[error("a PEFT adapter of type {0} cannot be used: only PROMPT_TUNING and P_TUNING have one prompt table")]
    PeftType(String),
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
        };
        Self { manifest, tables }
    }

    /// Writes the adapter into a directory, which is created if needed. Every file is replaced atomically.
    ///
    /// # Errors
    /// [`AdapterError::Write`] and [`AdapterError::Tensors`].
    pub fn save(&self, directory: &Path, model: &AdaptedModel) -> Result<(), AdapterError> {
        let config = peft::config(&self.manifest, model);
        let manifest = self.manifest.to_json();
        write_atomically(&directory.join(peft::CONFIG_FILE), pretty(&config).as_bytes())?;
        let texts = HashMap::from([(MANIFEST_KEY.to_owned(), manifest.to_string())]);
        write_tensors(&directory.join(TENSORS_FILE), &self.tensors(), texts)?;
        write_atomically(&directory.join(MANIFEST_FILE), pretty(&manifest).as_bytes())?;
        write_atomically(&directory.join("README.md"), peft::card(&self.manifest, model).as_bytes())?;
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>, &[f32])> {
        let shape = self.tables.shape();
        let mut tensors = Vec::new();
        for table in [Table::Input, Table::Deep, Table::Score] {
            let (Some(values), Some(extents)) = (self.tables.table(table), shape.of(table)) else { continue };
            if table == Table::Score && shape.mode() == TuningMode::Ptune {
                tensors.push((PEFT_SCORE.to_owned(), extents.clone(), values));
            }
            tensors.push((table.tensor_name().to_owned(), extents, values));
        }
        tensors
    }

    /// Reads an adapter for `model`: one of ours, one of PEFT's prompt tuning, or the tables' file alone.
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
        let tables = read_tables(&file, model);
        let tables = tables.map_err(|error| base::explained(error.into(), other.as_ref(), model))?;
        peft::check_tables(&foreign, directory, tables.shape())?;
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => manifest::of_foreign(tables.shape())?,
        };
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

fn read_tables(file: &TensorFile, model: &AdaptedModel) -> Result<PromptTables, TensorFileError> {
    let name = Table::Input.tensor_name();
    let input = file.find(name)?.ok_or_else(|| file.lacks(name))?;
    let prefix_len = match input.shape[..] {
        [rows, hidden] if rows > 0 && hidden == model.hidden => rows,
        _ => return Err(file.misshapen(name, input.shape, format!("[prefix length, {}]", model.hidden))),
    };
    let (injection, deep) = read_deep(file, prefix_len, model)?;
    let score = read_score(file, model)?;
    let labels = score.as_ref().and_then(|score| score.shape.first().copied());
    let shape = TableShape { injection, blocks: model.blocks, prefix_len, hidden: model.hidden, labels };
    Ok(PromptTables::from_parts(shape, Parts { input: input.values, deep, score: score.map(|score| score.values) }))
}

fn read_deep(
    file: &TensorFile,
    prefix_len: usize,
    model: &AdaptedModel,
) -> Result<(Injection, Option<Vec<f32>>), TensorFileError> {
    let name = Table::Deep.tensor_name();
    let Some(deep) = file.find(name)? else { return Ok((Injection::None, None)) };
    let (blocks, hidden) = (model.blocks, model.hidden);
    let injection = match deep.shape[..] {
        [n, m, d] if (m, d) == (prefix_len, hidden) && n == blocks => Injection::Add,
        [n, m, d] if (m, d) == (prefix_len, hidden) && n + 1 == blocks => Injection::Replace,
        _ => {
            let both = format!("[{blocks}, {prefix_len}, {hidden}] (add) or one prompt less (replace)");
            return Err(file.misshapen(name, deep.shape, both));
        }
    };
    Ok((injection, Some(deep.values)))
}

fn read_score(file: &TensorFile, model: &AdaptedModel) -> Result<Option<NamedTensor>, TensorFileError> {
    for name in SCORE_NAMES {
        let Some(score) = file.find(name)? else { continue };
        return match score.shape[..] {
            [labels, hidden] if labels > 0 && hidden == model.hidden => Ok(Some(score)),
            _ => Err(file.misshapen(name, score.shape, format!("[labels, {}]", model.hidden))),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
