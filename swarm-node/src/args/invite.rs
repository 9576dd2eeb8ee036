//! Arguments of `invite`.

use std::path::PathBuf;

use clap::Args;

use super::settings;

/// Examples in the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  petals-node invite --identity node.key                  # of the node that runs with it
  petals-node invite --identity node.key --swarm-key swarm.key --with-key
On the other machine:
  petals-node serve --model ./Llama-3.1-8B --join petals1:AgAA...";

/// Arguments of `invite`.
#[derive(Debug, Clone, Args)]
pub struct InviteArgs {
    /// Identity of the node of this machine to lead to. It leaves its addresses and its model beside this file.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Address of another member to lead to, ending in /p2p/PEER; repeatable.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = settings::member)]
    pub peers: Vec<String>,
    /// Key file of a private swarm.
    #[arg(long, value_name = "FILE")]
    pub swarm_key: Option<PathBuf>,
    /// Put the swarm's key into the line, so that whoever has the line can join.
    #[arg(long)]
    pub with_key: bool,
    /// Print one JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}
