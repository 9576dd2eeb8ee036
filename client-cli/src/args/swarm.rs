//! What every command needs to reach a swarm.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use petals_client::{ClientNetwork, Dtype, Invitation, PeerId, RelayMode, RouteRules, Span, WireDtype};
use petals_settings::{byte_size, duration_above_zero};

use super::values::{at_least, multiaddr, peer_id, pin, rate};

/// The model, and how to reach those who serve it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Swarm")]
pub(crate) struct SwarmArgs {
    /// The model: a directory with config.json, tokenizer.json, and the safetensors with embeddings, norm and head; a GGUF; or a name on Hugging
    /// Face's hub, org/name or org/name@revision, of which only these are fetched.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: PathBuf,

    /// Name of the model in the swarm [default: the directory's name, or of models from the hub and in its cache the
    /// repository's, org/name].
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,

    /// Most bytes that the models in the hub's cache may have together, such as 200G: before anything is fetched, what was not used for longest is removed
    /// from it, but nothing that is in use [default: as much as the disk holds].
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub(crate) max_disk: Option<u64>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    /// Longest wait for the answer to one request.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration_above_zero)]
    pub(crate) request_timeout: Duration,

    /// Longest wait for servers of blocks that nobody serves, before giving up.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration_above_zero)]
    pub(crate) give_up_after: Duration,

    /// Type in which the weights of the head and of --local-blocks are kept here: auto (f32), f32, bf16, f16, int8 (8.5 bits a weight) or int4 (4.5 bits). Half precision takes half the
    /// memory and, where the processor multiplies bf16, a fraction of the time; a token of int8 takes a quarter of both, of int4 an eighth.
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    pub(crate) dtype: Dtype,

    /// Type of hidden states and gradients on the wire: f32, bf16, f16 or int8 (a scale for every 64 values).
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub(crate) wire_dtype: WireDtype,

    /// How a micro-batch goes from one server to the next: chain (they pass it on to each other; where they cannot, as
    /// star) or star (through this machine). Results do not depend on it.
    #[arg(long, value_name = "MODE", default_value = "chain")]
    pub(crate) relay: RelayMode,

    #[command(flatten)]
    pub(crate) route: RoutingArgs,
}

/// Where the swarm is, and who this client is there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Swarm")]
pub(crate) struct NetworkArgs {
    /// Addresses of any members of the swarm, as nodes print them [default: those in the variable PETALS_PEERS, else nodes of the local
    /// network and members that were met before].
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = multiaddr)]
    pub(crate) peers: Vec<String>,

    /// A line of `petals-node invite` from another machine: addresses, the model's name, and perhaps the swarm's key.
    #[arg(long, value_name = "LINE")]
    pub(crate) join: Option<Invitation>,

    /// Without --peers: do not look for nodes on the local network by multicast.
    #[arg(long)]
    pub(crate) no_mdns: bool,

    /// Key file of a private swarm.
    #[arg(long, value_name = "FILE")]
    pub(crate) swarm_key: Option<PathBuf>,

    /// Identity file of this client, made if missing, for servers that serve only some peers [default: a new one each time].
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
}

impl NetworkArgs {
    /// How the swarm is joined.
    pub(crate) fn network(&self) -> ClientNetwork {
        ClientNetwork {
            peers: self.peers.clone(),
            invitation: self.join.clone(),
            swarm_key: self.swarm_key.clone(),
            identity: self.identity.clone(),
            members: members(),
            no_mdns: self.no_mdns,
        }
    }
}

/// Where members of swarms are kept: in the user's cache directory, if that is known.
pub(crate) fn members() -> Option<PathBuf> {
    Some(petals_settings::cache_dir()?.join("members"))
}

/// Which servers are used, and how they are watched.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Routing")]
pub(crate) struct RoutingArgs {
    /// Use only these peers.
    #[arg(long, value_name = "PEER", num_args = 1.., value_parser = peer_id)]
    pub(crate) allow: Vec<PeerId>,

    /// Never use these peers.
    #[arg(long, value_name = "PEER", num_args = 1.., value_parser = peer_id)]
    pub(crate) block: Vec<PeerId>,

    /// Run these blocks on this peer alone, for example 0..4=12D3Koo…; the last one that names a block counts.
    #[arg(long, value_name = "BLOCKS=PEER", num_args = 1.., value_parser = pin)]
    pub(crate) pin: Vec<(Span, PeerId)>,

    /// Run the first and the last block on these peers only: they see what goes in and what comes out.
    #[arg(long, value_name = "PEER", num_args = 1.., value_parser = peer_id)]
    pub(crate) trusted: Vec<PeerId>,

    /// How many of the first blocks --trusted peers alone run: the more, the less others can tell of what goes in.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "trusted")]
    pub(crate) trusted_first: u32,

    /// How many of the last blocks --trusted peers alone run: the more, the less others can tell of what comes out.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "trusted")]
    pub(crate) trusted_last: u32,

    /// Run these blocks, the first ones, on this machine, for example 0..2: no server then sees a text's embeddings, which are as good as the text. Their
    /// weights must be here (those of a model from the hub are fetched), and take memory in --dtype.
    #[arg(long, value_name = "A..B")]
    pub(crate) local_blocks: Option<Span>,

    /// Use only servers whose weights are these, a file as `petals-tune fingerprint` writes it [default: those that most servers have].
    #[arg(long, value_name = "HASHFILE")]
    pub(crate) weights: Option<PathBuf>,

    /// Use only servers that compute in these types: f32, bf16, f16, int8, int4 [default: all; with --verify all but int4, whose results may differ by so
    /// much that most lies pass].
    #[arg(long, value_name = "DTYPE", num_args = 1..)]
    pub(crate) server_dtype: Vec<Dtype>,

    /// Routes that the micro-batches of a step are spread over at most.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least(1))]
    pub(crate) routes: usize,

    /// A server that is silent for this long, and four times as long as usual, is raced by another one.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration_above_zero)]
    pub(crate) hedge_after: Duration,

    /// Part of the results, 0 to 1, that a second server computes again, one of --trusted if they hold the blocks; a third one decides between them. A server
    /// that contradicts a trusted one or itself is not used any more, one that strangers outvote is left alone for a time. Everything then goes
    /// through this machine (--relay star), so that nobody can tell what is checked.
    #[arg(long, value_name = "RATE", default_value_t = 0.0, allow_negative_numbers = true, value_parser = rate)]
    pub(crate) verify: f64,
}

impl RoutingArgs {
    /// The rules that planning keeps to.
    pub(crate) fn rules(&self) -> RouteRules {
        RouteRules {
            allow: self.allow.iter().copied().collect(),
            block: self.block.iter().copied().collect(),
            pins: self.pin.clone(),
            trusted: self.trusted.iter().copied().collect(),
            trusted_first: self.trusted_first,
            trusted_last: self.trusted_last,
        }
    }
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
