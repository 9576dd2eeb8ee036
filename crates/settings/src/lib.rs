//! Where a program's settings come from: flags win over the environment, the environment over `petals.toml`, and that over defaults.
//!
//! The file and the environment say what the flags of a command would be. They are put under the command line as defaults, so that whatever
//! clap checks of a flag (its type, its range, its possible values) is checked of them too, and a key of the file needs no code of its own.
//!
//! A key at the top of the file is for both programs, one in `[node]` or `[tune]` for that program alone:
//!
//! ```toml
//! peers = ["/ip4/203.0.113.5/tcp/31330/p2p/12D3KooW…"]
//! model = "models/Llama-3.1-8B"
//!
//! [node]
//! identity = "node.key"
//! num_blocks = 12
//! ```
//!
//! What else both programs say the same way is here too: sizes and times ([`byte_size`], [`duration`]), `--version`, completions and manual pages.

mod command_line;
mod file;
mod in_force;
mod manual;
mod values;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory, FromArgMatches};

pub use file::FileError;
pub use in_force::{FileInForce, InForce, SettingInForce, Source};
pub use manual::{CompletionsArgs, ManArgs, Shell};
pub use values::{byte_size, duration, duration_above_zero};
pub use version::version;

/// The environment variable with addresses of members, separated by spaces or commas.
pub const PEERS_VARIABLE: &str = "PETALS_PEERS";
/// Name of the file in the places where it is looked for.
const FILE_NAME: &str = "petals.toml";
/// Keys that stand at the top of the file, because both programs have a flag of that meaning.
const SHARED: [&str; 6] = ["join", "model", "model-name", "no-mdns", "peers", "swarm-key"];
/// Flags that take a name, `org/name`, in the place of a path.
const NAMES: [&str; 2] = ["model", "draft-model"];
/// Tables of the file.
const TABLES: [&str; 2] = ["node", "tune"];

/// What the settings of a program are.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its table in the file.
    pub table: &'static str,
    /// The command that shows what is in force.
    pub show: &'static str,
    /// The command whose settings it shows if it is not told which.
    pub shown: &'static str,
    /// Whether a flag of a command can be set in the file.
    pub settable: fn(&Command, &Arg) -> bool,
}

impl Program {
    /// Whether a flag of a command is read from below the command line. One of all commands is not: it is given to the program itself.
    pub(crate) fn can_set(&self, command: &Command, arg: &Arg) -> bool {
        !arg.is_global_set() && (self.settable)(command, arg)
    }
}

/// What is around a command line.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The value of [`PEERS_VARIABLE`].
    pub peers: Option<OsString>,
    /// Files that are read if no `--config` names one: the first that exists.
    pub places: Vec<PathBuf>,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed<C> {
    /// To carry out a command.
    Run(C),
    /// To show which settings a command would have.
    Show(InForce),
}

/// Why a command line cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A flag is wrong, or help was asked for.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The file is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value of the environment is wrong.
    #[error("{PEERS_VARIABLE}: {0}")]
    Environment(String),
}

impl Surroundings {
    /// Those of this process: `petals.toml` in the working directory, then in the user's configuration directory.
    pub fn of_this_process() -> Self {
        let mut places = vec![PathBuf::from(FILE_NAME)];
        let configurations = set("XDG_CONFIG_HOME").map(PathBuf::from).or_else(dirs::config_dir);
        places.extend(configurations.map(|directory| directory.join("petals").join(FILE_NAME)));
        Self { peers: set(PEERS_VARIABLE), places }
    }
}

/// A variable of the environment, if it is not empty.
fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Where the programs keep what can be had again, `petals` in the user's folder for such things, if that is known: `XDG_CACHE_HOME`, else what the
/// system has for it (`~/.cache` on Linux, `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows).
pub fn cache_dir() -> Option<PathBuf> {
    Some(set("XDG_CACHE_HOME").map(PathBuf::from).or_else(dirs::cache_dir)?.join("petals"))
}

/// Reads a command line, with what the environment and the file say where it says nothing.
///
/// # Errors
/// [`SettingsError`]; the help that was asked for is one too.
pub fn parse<C: CommandFactory + FromArgMatches>(
    program: Program,
    arguments: impl IntoIterator<Item = OsString>,
    around: &Surroundings,
) -> Result<Parsed<C>, SettingsError> {
    command_line::parse(program, arguments.into_iter().collect(), around)
}

#[cfg(test)]
mod tests;
