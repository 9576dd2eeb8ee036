//! `petals-tune route`.

use clap::Args;

use super::SwarmArgs;
use super::values::at_least;

/// Arguments of `route`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RouteArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Show what every server is expected to cost, where each number comes from, and why it was not chosen.
    #[arg(long)]
    pub(crate) explain: bool,

    /// Rows of the pass that is planned, prefix included; 1 is a step of generation.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least(1))]
    pub(crate) rows: usize,
}
