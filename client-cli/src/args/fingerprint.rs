//! `petals-tune fingerprint`.

use clap::Args;

use super::SwarmArgs;

const EXAMPLES: &str = "\
Examples:
  petals-tune fingerprint --model ./Llama-3.2-1B > llama.weights
  petals-tune fingerprint --model ./Llama-3.2-1B --peers $PEERS --served
  petals-tune generate --model ./Llama-3.2-1B --peers $PEERS --weights llama.weights --prompt Hello";

/// Arguments of `fingerprint`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct FingerprintArgs {
    #[command(flatten)]
    pub(crate) swarm: SwarmArgs,

    /// Show what the servers of the swarm say of their weights, and not what the files in --model are, of which all must be there otherwise. What is
    /// not in use has # in front.
    #[arg(long)]
    pub(crate) served: bool,
}
