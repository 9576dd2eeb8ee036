//! A node of the swarm: hosts a span of a model's frozen blocks, or only helps others to find each other.
//!
//! The binary `petals-node` is a thin shell around [`run`]; tests start the same nodes in their own process with
//! [`Server::start`].

mod args;
mod commands;
mod error;
mod executor;
#[cfg(test)]
mod fixture;
mod lock;
mod log;
mod machine;
pub mod placement;
mod server;
mod sharing;
mod streams;

pub use args::{
    BenchArgs, BenchInjection, BenchKind, BenchMode, BenchTask, BootstrapArgs, Cli, Command, ConfigArgs, DevicesArgs,
    DoctorArgs, InviteArgs, KeygenArgs, LogFormat, NetworkArgs, PageArgs, ServeArgs, ShareArgs, command_line,
};
pub use commands::events::{
    BenchFigures, BenchSetup, BlockBytes, BlockKind, BlocksThatFit, Check, CheckStatus, DeviceProblem, DeviceSeen,
    Join, ModelNeeds, NodeEvent, Report,
};
pub use error::NodeError;
pub use executor::{ExecutorConfig, StashPolicy, WorkCount};
pub use log::{log_behind_the_answers, log_to_stderr};
pub use machine::measure::MeasureConfig;
pub use machine::rooms::Rooms;
pub use petals_settings::{InForce, Parsed, SettingsError};
pub use placement::mover::RebalanceConfig;
pub use server::{Server, ServerConfig};

/// Carries out a command line.
///
/// # Errors
/// [`NodeError`], with the process's exit status in [`NodeError::exit_code`].
pub async fn run(cli: Cli) -> Result<(), NodeError> {
    match cli.command {
        Command::Serve(args) => commands::serve::run(*args).await,
        Command::Bootstrap(args) => commands::bootstrap::run(args).await,
        Command::Devices(args) => commands::devices::run(&args),
        Command::Doctor(args) => commands::doctor::run(*args).await,
        Command::Keygen(args) => commands::keygen::run(&args),
        Command::Invite(args) => commands::invite::run(&args),
        Command::Bench(args) => commands::bench::run(*args).await,
        Command::Completions(args) => commands::manual::completions(&args),
        Command::Man(args) => commands::manual::man(&args),
        // Shown by `command_line`, which alone knows where values come from.
        Command::Config(_) => Ok(()),
    }
}

/// Prints which settings a command would have.
pub fn show_settings(settings: InForce) {
    let InForce { file, settings, json } = settings;
    NodeEvent::SettingsFile(file).emit(json);
    settings.into_iter().for_each(|setting| NodeEvent::Setting(setting).emit(json));
}
