//! `petals-tune route`.

use clap::Args;

use super::SwarmArgs;

/// Arguments of `route`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RouteArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,
}
