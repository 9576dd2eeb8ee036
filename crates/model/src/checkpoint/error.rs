//! Why a checkpoint cannot be used, and what to do about it.

use std::path::PathBuf;

use petals_protocol::Span;

use crate::config::ConfigError;
use crate::device::DeviceError;

const DOWNLOAD: &str = "download it again";
const LFS: &str = "run `git lfs install` once and `git lfs pull` in its directory, or download the file itself";
const LAYOUT: &str = "use a whole checkpoint in Hugging Face's layout, with the config.json that belongs to it";
const SHARD: &str = "download it from where the rest of the model came from";
const DTYPE: &str =
    "use a checkpoint of such weights, or one that is quantised as its config.json says (`quantization_config`)";
const PACKED: &str = "download it again, or use the model that this one was made from";
const HEAD: &str = "use a complete checkpoint, or, if the model's head is its embedding table, set `tie_word_embeddings` to true in \
                    config.json, on all servers and clients alike";

/// Why files that are not there cannot be brought.
pub type SupplyError = Box<dyn std::error::Error + Send + Sync>;

/// Why a checkpoint, or a part of it, cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file is missing or unreadable.
    #[error("cannot read {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration was refused.
    #[error("{path} was refused")]
    Config {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// The configuration that a GGUF's metadata amount to was refused.
    #[error("{path} was refused, whose metadata are read as the config.json that they were made from")]
    Metadata {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Box<ConfigError>,
    },
    /// A GGUF of something that this program does not read or compute.
    #[error("{path}: `{key}` is {got}, which is not supported: {remedy}")]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// Which key of its metadata, or which tensor.
        key: String,
        /// What it has.
        got: String,
        /// The way out.
        remedy: String,
    },
    /// A directory lacks a file that every checkpoint has.
    #[error("{path} has {missing}: {remedy}")]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// What is missing, and what lies there in its place.
        missing: String,
        /// What to do.
        remedy: String,
    },
    /// What git leaves of a large file where git-lfs is not installed.
    #[error("{path} is a git-lfs pointer and not the file itself: {LFS}")]
    LfsPointer {
        /// Which file.
        path: PathBuf,
    },
    /// The index or a header does not say what it should.
    #[error("{path} is malformed: {reason}: {DOWNLOAD}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file ends too early.
    #[error("{path} has {length} of at least {expected} bytes, its download has not ended: {DOWNLOAD}")]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Bytes that it has.
        length: u64,
        /// Bytes that it must have, as far as it can be read.
        expected: u64,
    },
    /// A file that the index names is not there.
    #[error("{path} is not there, which has the tensor `{name}`: {SHARD}")]
    MissingShard {
        /// Which file.
        path: PathBuf,
        /// A tensor of it that is needed.
        name: String,
    },
    /// Files that are not there cannot be brought.
    #[error("what the model lacks here cannot be fetched")]
    Supply(#[source] SupplyError),
    /// The checkpoint has no such tensor.
    #[error("{path} has no tensor `{name}`{hint}: {LAYOUT}")]
    MissingTensor {
        /// Index or file in which it was looked up.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// What there is in its place, if anything looks like it.
        hint: String,
    },
    /// The checkpoint has no head, and its configuration does not say that the embeddings are one.
    #[error(
        "{path} has no head (`lm_head.weight`), and `tie_word_embeddings` is false or missing in config.json: {HEAD}"
    )]
    MissingHead {
        /// Index or file in which it was looked up.
        path: PathBuf,
    },
    /// A tensor's shape is not what the configuration implies.
    #[error("tensor `{name}` in {path} has shape {got:?}, the configuration asks for {expected:?}: {LAYOUT}")]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// Shape in the file.
        got: Vec<usize>,
        /// Shape implied by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor's dtype cannot be read.
    #[error("tensor `{name}` in {path} is {dtype}: only {expected} is read there: {DTYPE}")]
    Dtype {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// Dtype in the file.
        dtype: String,
        /// The dtypes that are read.
        expected: String,
    },
    /// Quantised weights do not fit together.
    #[error("the quantised weight `{name}` in {path} cannot be read: {reason}: {PACKED}")]
    Packed {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The device cannot have such weights.
    #[error("the weights cannot be loaded")]
    Device(#[from] DeviceError),
    /// Blocks that the model does not have.
    #[error("the model has {blocks} blocks, so there is no span {span}")]
    Span {
        /// The span asked for.
        span: Span,
        /// Blocks of the model.
        blocks: usize,
    },
}

impl CheckpointError {
    /// What to do about it. Most messages end with it.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Io { .. } => "give --model the directory with config.json and the safetensors, or a GGUF",
            Self::Config { source, .. } => source.remedy(),
            Self::Metadata { source, .. } => source.remedy(),
            Self::Incomplete { remedy, .. } | Self::Unsupported { remedy, .. } => remedy,
            Self::LfsPointer { .. } => LFS,
            Self::Malformed { .. } | Self::Truncated { .. } => DOWNLOAD,
            Self::MissingShard { .. } => SHARD,
            Self::MissingTensor { .. } | Self::Shape { .. } => LAYOUT,
            Self::MissingHead { .. } => HEAD,
            Self::Dtype { .. } => DTYPE,
            Self::Packed { .. } => PACKED,
            Self::Supply(_) => "see why, and start again: what has come is kept",
            Self::Device(_) => "choose another --device or --dtype",
            Self::Span { .. } => "ask for blocks that the model has",
        }
    }
}
