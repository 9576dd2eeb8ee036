//! `petals-tune logits`.

use std::path::PathBuf;

use clap::Args;

use super::SwarmArgs;

/// Arguments of `logits`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Directory of an adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// JSON list of rows of token ids, all of one length: [[1, 2, 3], [4, 5, 6]].
    #[arg(long, value_name = "FILE")]
    pub(crate) input_ids: PathBuf,

    /// Safetensors file to write: tensor "logits" [rows, tokens, vocabulary] in f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}
