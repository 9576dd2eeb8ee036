//! `petals-tune eval`.

use std::path::PathBuf;

use clap::Args;

use super::{PassArgs, SwarmArgs, TextArgs};

/// Arguments of `eval`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Directory of the adapter. Without it the model alone is measured, on texts.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// Data in the form that the adapter was trained on, or texts.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) passes: PassArgs,
}
