//! `petals-tune export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::SwarmArgs;

const EXAMPLES: &str = "\
Examples:
  petals-tune export --model ./Llama-3.2-1B --peers /ip4/192.0.2.1/tcp/31337/p2p/12D3Koo… --adapter ./sst2-deep --to prefix --out ./sst2-prefix
  petals-tune export --model ./Llama-3.2-1B --adapter ./notes-lora --merge-lora ./Llama-3.2-1B-notes";

/// Arguments of `export`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = EXAMPLES,
    group(clap::ArgGroup::new("form").required(true).args(["to", "merge_lora"]))
)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Directory of the adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,

    /// Ask the servers for the keys and values of the adapter's prompts, deep ones too, and write them as an adapter of PEFT's type
    /// PREFIX_TUNING, which gives equal logits.
    #[arg(long, value_enum, value_name = "KIND", requires = "out")]
    pub(crate) to: Option<ExportTo>,

    /// With --to: directory of the new adapter.
    #[arg(long, value_name = "DIR", requires = "to")]
    pub(crate) out: Option<PathBuf>,

    /// Write the checkpoint in --model, of which all weights must be there, with the adapter of lora or ia3 folded in. Needs no swarm.
    #[arg(long, value_name = "DIR")]
    pub(crate) merge_lora: Option<PathBuf>,
}

/// What an adapter is turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportTo {
    /// Keys and values in front of those of every block.
    Prefix,
}
