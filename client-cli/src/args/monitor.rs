//! `petals-tune monitor`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use petals_settings::duration;

use super::swarm::NetworkArgs;
use super::values::at_least;

/// Arguments of `monitor`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  petals-tune monitor --peers $PEERS
      then open http://127.0.0.1:8091 in a browser
  petals-tune monitor --model ./Llama-3.1-8B --peers $PEERS
      shows the route that a pass from this machine would take as well, with what each hop costs
  petals-tune monitor --model ./Llama-3.1-8B --peers $PEERS --probe 30s
      sends a small pass through the swarm twice a minute while somebody looks, and shows what each hop took
  curl -s http://127.0.0.1:8091/api/v1/state | jq '.models[] | {model, missing, weakest}'")]
pub(crate) struct MonitorArgs {
    /// Name of a model in the swarm [default: all of them].
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// A model, as for other commands, whose route from this machine is shown. Of its files config.json is read, and the layout of its weights.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,

    /// Name of that model in the swarm [default: the directory's name, or of models from the hub and in its cache the repository's, org/name].
    #[arg(long, value_name = "NAME", requires = "model")]
    pub(crate) model_name: Option<String>,

    /// Rows of the pass whose route is shown; 1 is a step of generation.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least(1))]
    pub(crate) rows: usize,

    /// Send a pass of --rows rows through the swarm this often while somebody looks, and show what each hop took [default: none is sent, and the route shows
    /// what is expected].
    #[arg(long, value_name = "TIME", requires = "model", value_parser = duration)]
    pub(crate) probe: Option<Duration>,

    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8091")]
    pub(crate) listen: SocketAddr,

    /// File with a key that whoever looks must have.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}
