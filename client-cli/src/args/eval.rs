//! `petals-tune eval`.

use std::path::PathBuf;

use clap::Args;
use petals_client::TextRules;

use super::values::at_least;
use super::{PassArgs, SwarmArgs};

/// Arguments of `eval`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Directory of the adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,

    /// Data in the form that the adapter was trained on.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,

    /// Most tokens of an example [default: as in training].
    #[arg(long, value_name = "N", value_parser = at_least(2))]
    max_length: Option<usize>,

    /// Append the end-of-sequence token to every text [default: as in training].
    #[arg(long)]
    append_eos: bool,

    #[command(flatten)]
    pub(crate) passes: PassArgs,
}

impl EvalArgs {
    /// The rules of training, as far as no flag says otherwise.
    pub(crate) fn rules(&self, trained: TextRules) -> TextRules {
        TextRules {
            max_length: self.max_length.or(trained.max_length),
            append_eos: self.append_eos || trained.append_eos,
        }
    }
}
