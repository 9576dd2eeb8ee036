//! Why a checkpoint cannot be used.

use std::path::PathBuf;

use petals_protocol::Span;

use crate::config::ConfigError;
use crate::device::DeviceError;

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
    /// No weights at all.
    #[error("{0} has neither model.safetensors nor model.safetensors.index.json")]
    NoWeights(PathBuf),
    /// The index or a header does not say what it should.
    #[error("{path} is malformed: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint has no such tensor.
    #[error("{path} has no tensor `{name}`")]
    MissingTensor {
        /// Index or file in which it was looked up.
        path: PathBuf,
        /// Which tensor.
        name: String,
    },
    /// A tensor's shape is not what the configuration implies.
    #[error("tensor `{name}` in {path} has shape {got:?}, the configuration asks for {expected:?}")]
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
    #[error("tensor `{name}` in {path} is {dtype}: only F32, BF16 and F16 are read")]
    Dtype {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        name: String,
        /// Dtype in the file.
        dtype: String,
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
