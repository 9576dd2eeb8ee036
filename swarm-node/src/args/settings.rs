//! The command line together with the environment and the file of settings.

use std::ffi::OsString;

use clap::{Arg, Args, Command};
use petals_settings::{Parsed, Program, SettingsError, Surroundings};

use super::Cli;

/// Examples in the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  petals-node config
  petals-node config serve --num-blocks 12
  petals-node config doctor --json

A file petals.toml:
  peers = [\"/ip4/10.0.0.1/tcp/31330/p2p/12D3Koo...\"]    # for petals-node and petals-tune
  model = \"./Llama-3.1-8B\"

  [node]                                                 # any flag of serve, bootstrap and doctor
  identity = \"node.key\"
  num_blocks = 12";

/// The settings of this program.
const PROGRAM: Program = Program { table: "node", show: "config", shown: "serve", settable };

/// Arguments of `config`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// A command with flags of its own. Default: serve.
    #[arg(value_name = "COMMAND", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Commands whose flags can be set. Not `keygen`, which would write where others read, nor `bench`, of which nobody wants the flags of `serve`.
fn settable(command: &Command, arg: &Arg) -> bool {
    let of_node = ["serve", "bootstrap", "doctor", "invite"].contains(&command.get_name());
    of_node
        && arg
            .get_long()
            .is_some_and(|flag| !["config", "json", "help", "version", "with-key", "report"].contains(&flag))
}

/// Reads the command line of this process, with what the environment and the file of settings say where it says nothing.
///
/// # Errors
/// [`SettingsError`]; the help that was asked for is one too.
pub fn command_line(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed<Cli>, SettingsError> {
    petals_settings::parse(PROGRAM, arguments, &Surroundings::of_this_process())
}

/// The address of a member of the swarm.
pub(super) fn member(text: &str) -> Result<String, String> {
    petals_swarm::parse_peers([text]).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
