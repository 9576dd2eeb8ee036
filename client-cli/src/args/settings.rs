//! The command line together with the environment and the file of settings.

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Arg, Args, Command};
use petals_settings::{Parsed, Program, SettingsError, Surroundings};

use super::{Cli, SwarmArgs};

/// Examples in the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  petals-tune config
  petals-tune config train --wire-dtype bf16 --json

A file petals.toml:
  peers = [\"/ip4/192.0.2.1/tcp/31337/p2p/12D3Koo…\"]    # for petals-node and petals-tune
  model = \"./Llama-3.1-8B\"

  [tune]                                               # any flag under Swarm and Routing
  wire_dtype = \"bf16\"
  identity = \"me.key\"";

/// The settings of this program.
const PROGRAM: Program = Program { table: "tune", show: "config", shown: "generate", settable };

/// Arguments of `config`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    /// A command with flags of its own [default: generate].
    #[arg(value_name = "COMMAND", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Flags that say how a swarm is reached and used. Not what a single run is about.
static FLAGS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let swarm = SwarmArgs::augment_args(Command::new("swarm"));
    swarm.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect()
});

fn settable(_: &Command, arg: &Arg) -> bool {
    arg.get_long().is_some_and(|flag| FLAGS.contains(flag))
}

/// Reads a command line, with what the environment and the file of settings say where it says nothing.
pub(crate) fn command_line(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed<Cli>, SettingsError> {
    petals_settings::parse(PROGRAM, arguments, &Surroundings::of_this_process())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_the_swarm_can_be_set() {
        let of = |flag: &'static str| settable(&Command::new("serve"), &Arg::new(flag).long(flag));
        assert!(["peers", "join", "model", "wire-dtype", "verify", "no-mdns", "swarm-key"].into_iter().all(of));
        assert!(!["listen", "api-key", "tool-format", "json", "config", "data", "out"].into_iter().any(of));
    }
}
