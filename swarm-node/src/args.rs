//! The command line of `petals-node`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use petals_protocol::{MAX_PUBLIC_NAME, Span};
use petals_settings::{CompletionsArgs, ManArgs, byte_size, duration};
use petals_swarm::Invitation;

use crate::executor::StashPolicy;

mod bench;
mod device;
#[cfg(test)]
mod documents;
mod hub;
mod invite;
mod page;
mod settings;
mod share;
mod version;

pub use bench::{BenchArgs, BenchInjection, BenchKind, BenchMode, BenchTask};
pub(crate) use device::DeviceArgs;
pub use device::DevicesArgs;
pub(crate) use hub::HubArgs;
pub use invite::InviteArgs;
pub use page::PageArgs;
pub use settings::{ConfigArgs, command_line};
pub use share::ShareArgs;
pub(crate) use version::{NUMBER, version};

const SERVE_EXAMPLES: &str = "\
Examples:
  Start a swarm with the first half of a model:
    petals-node serve --model meta-llama/Llama-3.1-8B --blocks 0..16
  Join it from a second machine with whatever is served worst:
    petals-node serve --model meta-llama/Llama-3.1-8B --peers /ip4/10.0.0.1/tcp/31330/p2p/12D3Koo...
  With what other servers of the local network have fetched already, and passing it on:
    petals-node serve --model meta-llama/Llama-3.1-8B --share-weights --peers /ip4/10.0.0.1/tcp/31330/p2p/12D3Koo...
  And show the swarm in a browser, at http://127.0.0.1:8090:
    petals-node serve --model meta-llama/Llama-3.1-8B --page
  On two cards of this machine, with what they do not hold on the processor (see petals-node devices):
    petals-node serve --model meta-llama/Llama-3.1-8B --device cuda:0,cuda:1,cpu
  With a copy of the model on this machine, under the name that the others have:
    petals-node serve --model ./Llama-3.1-8B --model-name meta-llama/Llama-3.1-8B --peers /ip4/10.0.0.1/tcp/31330/p2p/12D3Koo...";

const BOOTSTRAP_EXAMPLES: &str = "\
Example:
  petals-node bootstrap --listen /ip4/0.0.0.0/tcp/31337 --identity bootstrap.key";

const KEYGEN_EXAMPLES: &str = "\
Example:
  petals-node keygen --out node.key
  petals-node keygen --swarm-key swarm.key     # for every node and client of a private swarm";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  petals-node doctor --model ./Mixtral-8x7B-v0.1 --dtype int4
  petals-node doctor --model ./Llama-3.1-8B --peers /ip4/10.0.0.1/tcp/31330/p2p/12D3Koo...
  petals-node doctor --report report.txt        # for a bug report";

const COMPLETIONS_EXAMPLES: &str = "\
Examples (scripts/install does this):
  petals-node completions bash > ~/.local/share/bash-completion/completions/petals-node
  petals-node completions zsh > ~/.local/share/zsh/site-functions/_petals-node
  petals-node completions fish > ~/.config/fish/completions/petals-node.fish";

const MAN_EXAMPLES: &str = "\
Example:
  petals-node man --out ~/.local/share/man/man1
  man petals-node-serve";

/// Serve blocks of a large language model to a swarm.
#[derive(Debug, Parser)]
#[command(name = "petals-node", version = version(), about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How what happens is logged on stderr: text, or json for one object in a line.
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// File of settings. Default: petals.toml here, or petals/petals.toml in the user's configuration directory.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object in a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Host a range of a model's frozen blocks.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Run a node that only helps others to find each other.
    #[command(after_help = BOOTSTRAP_EXAMPLES)]
    Bootstrap(BootstrapArgs),
    /// Make an identity file and print its peer id, or the key of a private swarm.
    #[command(after_help = KEYGEN_EXAMPLES)]
    Keygen(KeygenArgs),
    /// Print a line that leads others into the swarm, for their --join.
    #[command(after_help = invite::EXAMPLES)]
    Invite(InviteArgs),
    /// List what this machine can compute on, for --device, and what is missing to use more of it.
    #[command(after_help = device::EXAMPLES)]
    Devices(DevicesArgs),
    /// Say what works on this machine, and what to do about the rest.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(Box<DoctorArgs>),
    /// Time passes over blocks in this process, without a network.
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<BenchArgs>),
    /// Show which settings a command would have, and where each comes from: a flag, PETALS_PEERS, the file, or nobody.
    #[command(after_help = settings::EXAMPLES)]
    Config(ConfigArgs),
    /// Print what a shell needs to complete commands and flags.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write manual pages.
    #[command(after_help = MAN_EXAMPLES)]
    Man(ManArgs),
}

/// How a node is reached and who it is.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Address to listen on; repeatable. Default: TCP over IPv4, and TCP over IPv6 and QUIC where possible, on free ports of
    /// every interface.
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<String>,
    /// Address to tell others instead of the ones found, for a forwarded port; repeatable.
    #[arg(long, value_name = "MULTIADDR")]
    pub announce: Vec<String>,
    /// Key file of a private swarm (`petals-node keygen --swarm-key`); only nodes with the same key can connect. Works over TCP only.
    #[arg(long, value_name = "FILE")]
    pub swarm_key: Option<PathBuf>,
    /// A line of `petals-node invite` from another machine: addresses, the model's name, and perhaps the swarm's key.
    #[arg(long, value_name = "LINE")]
    pub join: Option<Invitation>,
    /// Relay to be reachable through, ending in /p2p/PEER; repeatable. Default: one that the node meets, if others do not reach it.
    #[arg(long, value_name = "MULTIADDR")]
    pub relay_via: Vec<String>,
    /// Carry no traffic of nodes that others do not reach.
    #[arg(long)]
    pub no_relay_server: bool,
    /// Do not look for nodes on the local network by multicast. Not done in any case if --listen names loopback only.
    #[arg(long)]
    pub no_mdns: bool,
    /// Do not ask the router to forward a port. Not done in any case if --listen names loopback only.
    #[arg(long)]
    pub no_upnp: bool,
    /// Key file that gives the node the same peer id after a restart; made if missing. Default: a new id each time.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Print one JSON object per line on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model: a directory with config.json and model.safetensors (or its shards and index), a GGUF, or a name on Hugging Face's hub,
    /// org/name or org/name@revision, of which only what is needed is fetched.
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// Name of the model in the swarm; clients must use the same. Default: the directory's name, or of
    /// models from the hub and in its cache the repository's, org/name.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub hub: HubArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub share: ShareArgs,
    /// Blocks to host, for example 0..12. Default: those that the node with this --identity served before, else as many as fit into memory,
    /// where the swarm is weakest.
    #[arg(long, value_name = "A..B")]
    pub blocks: Option<Span>,
    /// Number of blocks to host where the swarm is weakest, instead of as many as fit into memory.
    #[arg(long, value_name = "N", conflicts_with = "blocks", value_parser = clap::value_parser!(u32).range(1..))]
    pub num_blocks: Option<u32>,
    /// Without --blocks: mean time between two looks whether other blocks need this server more, such as 90s or 10m; 0 for never.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = duration)]
    pub rebalance_period: Duration,
    /// Address of a node of the swarm, ending in /p2p/PEER; repeatable. Default: those in the variable PETALS_PEERS.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = settings::member)]
    pub peers: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: DeviceArgs,
    /// Largest number of rows (prefix and text) of one pass.
    #[arg(long, default_value_t = 8192, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rows: u32,
    /// Memory for what training forwards leave for their backwards, such as 512M or 2G. Default: an eighth of what the weights leave.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub stash_bytes: Option<u64>,
    /// Memory for the keys and values of inference sessions, such as 512M or 2G. Default: a quarter of what the weights leave.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub kv_bytes: Option<u64>,
    /// What training forwards leave: full (everything the backward needs), inputs (what enters each block, at the price of a second
    /// forward), none, or auto (whatever there is room for).
    #[arg(long, default_value = "auto", value_name = "LEVEL")]
    pub stash: StashPolicy,
    /// Memory for requests and replies of all clients together, of which one client gets a quarter. Default: an eighth of the
    /// free memory.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub request_bytes: Option<u64>,
    /// Largest tables that a client may bring along for the blocks of one request, such as 64M: prompts, prefixes, low-rank tables. Default: as
    /// large as a request may be.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub max_adapter_bytes: Option<u64>,
    /// Passes that may wait, of all clients together. When as many do, those of the client with most of them give way.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub queue: u32,
    /// Passes of one client that may wait.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub queue_per_peer: u32,
    /// Streams that one client may have open.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub streams_per_peer: u32,
    /// Where the measured speed, and weights that were rounded to int8 or int4, are kept for the next start. Default: petals in the user's cache directory.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Measure the speed anew instead of using what an earlier start measured.
    #[arg(long)]
    pub measure: bool,
    /// Peer whose requests are served, by its id; repeatable. Others are told so. Default: everybody's. Servers that pass rows on to
    /// this one must be among them.
    #[arg(long, value_name = "PEER")]
    pub allow_peer: Vec<String>,
    /// File with such peer ids, one in a line; what follows a # is a comment. SIGHUP has it read again.
    #[arg(long, value_name = "FILE")]
    pub allow_file: Option<PathBuf>,
    /// Time between two lines that say what the server did: requests, tokens, peers, memory; 0 for none.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = duration)]
    pub report_every: Duration,
    /// A name that people see in `petals-tune status`, of at most 64 characters.
    #[arg(long, value_name = "NAME", value_parser = public_name)]
    pub public_name: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub page: PageArgs,
}

/// Arguments of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Directory of a model, a GGUF, or a name on the hub, to see what it needs and how many of its blocks fit. Weights are not fetched.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Name of the model in the swarm. Default: the directory's name, or of
    /// models from the hub and in its cache the repository's, org/name.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub hub: HubArgs,
    /// Write what a bug tracker needs to a new file: this build, this machine, the answers and the log, without addresses, keys and paths.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Address of a node of the swarm, ending in /p2p/PEER; repeatable. It is asked whether it reaches this machine.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = settings::member)]
    pub peers: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: DeviceArgs,
}

/// Arguments of `bootstrap`.
#[derive(Debug, Clone, Args)]
pub struct BootstrapArgs {
    /// Address of another node of the swarm, ending in /p2p/PEER; repeatable.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = settings::member)]
    pub peers: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
}

/// Arguments of `keygen`.
#[derive(Debug, Clone, Args)]
pub struct KeygenArgs {
    /// Identity file to write; must not exist.
    #[arg(long, value_name = "FILE", required_unless_present = "swarm_key")]
    pub out: Option<PathBuf>,
    /// File for a new key of a private swarm; must not exist. Give it to every node and client, and to nobody else.
    #[arg(long, value_name = "FILE")]
    pub swarm_key: Option<PathBuf>,
    /// Print one JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

fn public_name(text: &str) -> Result<String, String> {
    let length = text.chars().count();
    match text.chars().find(|c| !petals_protocol::is_printable(*c)) {
        Some(c) => Err(format!("it has the character {c:?}, which cannot be shown")),
        None if text.trim().is_empty() => Err("it is empty".to_owned()),
        None if length > MAX_PUBLIC_NAME => {
            Err(format!("it has {length} characters, and {MAX_PUBLIC_NAME} are allowed"))
        }
        None => Ok(text.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_public_name_is_one_short_line() {
        assert_eq!(public_name(" attic "), Ok("attic".to_owned()));
        for wrong in ["", "  ", "a\u{1b}[2J", "a\nb", "\u{202e}a", &"x".repeat(65)] {
            assert!(public_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_wrong_range_is_refused_with_an_example() {
        let error = Cli::try_parse_from(["petals-node", "serve", "--model", "m", "--blocks", "4-8"]).unwrap_err();
        assert!(error.to_string().contains("0..12"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
