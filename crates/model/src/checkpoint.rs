//! A model's files: a directory with its configuration and its safetensors, or a GGUF.

use std::path::{Path, PathBuf};

use petals_protocol::{Fingerprint, ModelId, ModelIdError, Span};

use crate::config::ModelConfig;

pub(crate) mod blocks;
mod dtype;
mod error;
mod file;
mod found;
mod fp4;
mod ggml;
mod gguf;
mod hashed;
mod index;
mod layout;
mod matrix;
mod needed;
mod norm;
mod quantised;
pub(crate) mod rounded;
mod stored;
mod text;

use dtype::{FLOATS, FileDtype};
pub use error::{CheckpointError, SupplyError};
use file::Header;
pub use gguf::{GgufVocabulary, TokenKind};
use hashed::Hashes;
use index::TensorIndex;
pub(crate) use matrix::Matrix;
use needed::Supply;
pub(crate) use norm::NormWeights;
pub(crate) use stored::Stored;

const CONFIG: &str = "config.json";
/// Longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A checkpoint in Hugging Face's layout: `config.json` and `model.safetensors`, or shards with their index; or a GGUF, which is read as if it
/// were the checkpoint that it was converted from.
///
/// Files are mapped, not read, and only those are opened that hold a tensor asked for: a server needs the shards of its
/// span, a client those of embeddings, final norm and head. The files must not change while the checkpoint or a
/// [`crate::ClientModel`] made from it is alive.
///
/// Weights are floats, or quantised in one of the layouts that `quantization_config` may name, which are widened as they are read.
///
/// As with transformers the prefix `model.` of tensors' names is optional (whoever saves a model's base class leaves it out), tensors
/// that the model does not have are ignored, and a tied head is read from whichever name it is stored under.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    config: ModelConfig,
    index: TensorIndex,
    experts_in_files: bool,
    /// Where weights that were rounded are kept.
    rounded: Option<PathBuf>,
    /// What its blocks' weights are.
    hashes: Hashes,
    /// Who brings files that are not there.
    supply: Option<Supply>,
}

impl Checkpoint {
    /// Reads the configuration and the names of the tensors, no weights, of a directory or of a GGUF; of one that was split the first file.
    ///
    /// # Errors
    /// A [`CheckpointError`] naming the file that is missing, malformed or not supported.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref();
        if gguf::is_one(dir) {
            let gguf::Model { config, files, names } = gguf::open(dir)?;
            let index = TensorIndex::of_files(dir, config.names, files, names);
            return Ok(Self::of(dir, config, index));
        }
        let config = Self::config_in(dir)?;
        let index = TensorIndex::open(dir, config.names)?;
        Ok(Self::of(dir, config, index))
    }

    /// The same of a directory whose only file of weights, `model.safetensors`, is still to come, but for its header: its first bytes, up to the
    /// tensors' own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_before_weights(dir: impl AsRef<Path>, header: &[u8]) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref();
        let config = Self::config_in(dir)?;
        let index = TensorIndex::of_header(dir, config.names, header)?;
        Ok(Self::of(dir, config, index))
    }

    fn of(dir: &Path, config: ModelConfig, index: TensorIndex) -> Self {
        let (rounded, hashes, supply) = (None, Hashes::default(), None);
        Self { directory: dir.to_owned(), config, index, experts_in_files: false, rounded, hashes, supply }
    }

    fn config_in(dir: &Path) -> Result<ModelConfig, CheckpointError> {
        let path: PathBuf = dir.join(CONFIG);
        if dir.is_dir() && !path.is_file() {
            return Err(found::instead(dir, &[CONFIG]));
        }
        let text = text::read(&path, MAX_CONFIG)?;
        ModelConfig::from_json(&text).map_err(|source| CheckpointError::Config { path, source })
    }

    /// The same checkpoint, of whose blocks the experts' weights are to stay in their mapped files: for machines whose memory does not hold
    /// them. Each product then reads its weight from the file, unless the system has it in its cache.
    #[must_use]
    pub fn with_experts_in_files(self) -> Self {
        Self { experts_in_files: true, ..self }
    }

    /// Whether blocks are loaded without their experts' weights.
    pub fn experts_stay_in_files(&self) -> bool {
        self.experts_in_files
    }

    /// The model's architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every block of the model.
    pub fn blocks(&self) -> Span {
        Span::new(0, self.config.num_hidden_layers as u32).expect("a configuration has at least one block")
    }

    /// The model's identity in a swarm: `name`, or the directory's or file's own name, and the fingerprint. A revision in Hugging Face's cache has
    /// the name of its repository, such as `org/name`.
    ///
    /// # Errors
    /// [`ModelIdError`] if the name cannot be used.
    pub fn model_id(&self, name: Option<&str>) -> Result<ModelId, ModelIdError> {
        let own = || {
            if self.directory.is_file() {
                // A link in Hugging Face's cache has the file's name, its target has none.
                return gguf::name(&self.directory);
            }
            // Of links and of `.` the name that people know is that of the target.
            let path = self.directory.canonicalize().unwrap_or_else(|_| self.directory.clone());
            let own = || path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            repository(&path).unwrap_or_else(own)
        };
        ModelId::new(name.map_or_else(own, str::to_owned), self.fingerprint())
    }

    /// Tells models apart: a hash over the configuration's architecture and the names of all tensors.
    ///
    /// It is the same however the model is split into files, whatever dtype it is saved in, with and without the prefix of its
    /// tensors' names, and with and without a head, which servers do not need. It says nothing of the weights' values.
    pub fn fingerprint(&self) -> Fingerprint {
        let tied = self.config.head.tied;
        let head = self.head_name();
        // What every client needs is counted whether it is there or not.
        let mut names = self.index.canonical_names();
        names.insert(format!("{}.weight", self.config.names.embeddings()).into());
        names.insert(head.as_str().into());
        // The parts of a quantised head, which need not be there either.
        let of_head = |name: &str| {
            let part = name.strip_prefix(self.config.names.head()).and_then(|part| part.strip_prefix('.'));
            self.config.quantisation.is_some() && part.is_some_and(|part| !["weight", "bias"].contains(&part))
        };
        // Buffers that some versions of transformers saved and others did not, and a tied head that need not be there.
        let optional = |name: &str| name.ends_with("rotary_emb.inv_freq") || (tied && name == head) || of_head(name);
        names.retain(|name| !optional(name));
        let mut text = self.config.canonical();
        for name in names {
            text.push_str(&name);
            text.push('\n');
        }
        let mut short = [0; 8];
        short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
        Fingerprint(short)
    }

    /// The name of the head's weight.
    fn head_name(&self) -> String {
        format!("{}.weight", self.config.names.head())
    }

    /// Whether a tensor is named in the checkpoint, with or without its prefix.
    fn has_tensor(&self, name: &str) -> bool {
        self.index.names(name)
    }

    /// The file of the tensors or their index.
    pub(crate) fn tensors_path(&self) -> &Path {
        self.index.path()
    }

    /// Finds a tensor of floats of a given shape, opening its file if need be.
    pub(crate) fn locate(&self, name: &str, shape: &[usize]) -> Result<Stored, CheckpointError> {
        self.locate_as(name, shape, FLOATS)
    }

    /// Finds a tensor of a given shape that has one of `dtypes`.
    fn locate_as(&self, name: &str, shape: &[usize], dtypes: &[FileDtype]) -> Result<Stored, CheckpointError> {
        self.index.locate(name, shape, dtypes)
    }

    /// Dtype and shape of a tensor, as the header of its file says.
    fn header(&self, name: &str) -> Result<Header, CheckpointError> {
        self.index.header(name)
    }
}

/// The repository whose revision a directory is in Hugging Face's cache: `…/models--org--name/snapshots/REVISION`.
fn repository(path: &Path) -> Option<String> {
    let snapshots = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
    let folder = snapshots.parent()?.file_name()?.to_str()?;
    folder.strip_prefix("models--").filter(|name| !name.is_empty()).map(|name| name.replacen("--", "/", 1))
}

#[cfg(test)]
mod tests;
