//! `petals-tune status`.

use std::time::Duration;

use clap::Args;
use petals_settings::duration_above_zero;

use super::swarm::NetworkArgs;

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  petals-tune status --peers $PEERS
  petals-tune status Llama-3.1-8B --watch
  petals-tune status --json | jq '.models[] | {model, missing}'")]
pub(crate) struct StatusArgs {
    /// Name of a model in the swarm [default: all of them].
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Show it again and again, every 5 s or as often as said, until Ctrl-C.
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "5s", value_parser = duration_above_zero)]
    pub(crate) watch: Option<Duration>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}
