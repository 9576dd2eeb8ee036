//! What every command needs to reach a swarm.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use petals_client::{Dtype, RelayMode, WireDtype};

use super::values::{at_least, duration, multiaddr};

/// The model, and how to reach those who serve it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Swarm")]
pub(crate) struct SwarmArgs {
    /// Directory of the model: config.json, tokenizer.json, and the safetensors with embeddings, norm and head.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,

    /// Name of the model in the swarm [default: the directory's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,

    /// Addresses of any members of the swarm, as nodes print them.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., required = true, value_parser = multiaddr)]
    pub(crate) peers: Vec<String>,

    /// Key file of a private swarm.
    #[arg(long, value_name = "FILE")]
    pub(crate) swarm_key: Option<PathBuf>,

    /// Identity file of this client, made if missing, for servers that serve only some peers [default: a new one each time].
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,

    /// Longest wait for the answer to one request.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) request_timeout: Duration,

    /// Longest wait for servers of blocks that nobody serves, before giving up.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) give_up_after: Duration,

    /// Type in which the head's weights are kept here: auto (f32), f32, bf16 or f16. Half precision takes half the memory and,
    /// where the processor multiplies bf16, a fraction of the time.
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    pub(crate) dtype: Dtype,

    /// Type of hidden states and gradients on the wire: f32, bf16, f16 or int8 (a scale for every 64 values).
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub(crate) wire_dtype: WireDtype,

    /// How a micro-batch goes from one server to the next: chain (they pass it on to each other; where they cannot, as
    /// star) or star (through this machine). Results do not depend on it.
    #[arg(long, value_name = "MODE", default_value = "chain")]
    pub(crate) relay: RelayMode,
}

/// How batches are cut into passes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Passes")]
pub(crate) struct PassArgs {
    /// Most tokens of a micro-batch; results do not depend on it [default: what earlier steps showed to be quickest].
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) micro_batch_tokens: Option<usize>,

    /// Micro-batches under way at a time [default: what earlier steps showed to be enough].
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) in_flight: Option<usize>,
}
