//! A node of the swarm: hosts a span of a model's frozen blocks, or only helps others to find each other.
//!
//! The binary `petals-node` is a thin shell around [`run`]; tests start the same nodes in their own process with
//! [`Server::start`].

mod answer;
mod args;
mod bench;
mod bootstrap;
mod budget;
mod compute;
mod doctor;
mod error;
mod events;
mod executor;
mod figures;
#[cfg(test)]
mod fixture;
mod hosted;
mod idle_reader;
mod keygen;
mod measure;
mod memory;
mod mover;
mod network;
pub mod placement;
mod prefixes;
mod prompts;
mod queue;
mod relay;
mod request;
mod serve;
mod server;
mod sessions;
mod signals;
mod speed;
mod stash;
mod steps;
mod stream;

pub use args::{
    BenchArgs, BenchInjection, BenchKind, BenchMode, BenchTask, BootstrapArgs, Cli, Command, DoctorArgs, KeygenArgs,
    NetworkArgs, ServeArgs,
};
pub use bench::{BenchFigures, BenchSetup};
pub use doctor::{Check, CheckStatus};
pub use error::NodeError;
pub use events::NodeEvent;
pub use executor::ExecutorConfig;
pub use measure::MeasureConfig;
pub use mover::RebalanceConfig;
pub use server::{Server, ServerConfig};
pub use stash::StashPolicy;

/// Carries out a command line.
///
/// # Errors
/// [`NodeError`], with the process's exit status in [`NodeError::exit_code`].
pub async fn run(cli: Cli) -> Result<(), NodeError> {
    match cli.command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Bootstrap(args) => bootstrap::run(args).await,
        Command::Doctor(args) => doctor::run(*args).await,
        Command::Keygen(args) => keygen::run(&args),
        Command::Bench(args) => bench::run(*args).await,
    }
}

/// Logs to stderr; the level comes from `RUST_LOG` and is `warn`, for this project's own code `info`, without it.
pub fn log_to_stderr() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env()
        // The first node of a swarm has nobody to ask, which kad warns of every few minutes.
        .unwrap_or_else(|_| {
            EnvFilter::new("warn,libp2p_kad=error,petals_node=info,petals_swarm=info,petals_model=info")
        });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = log.with_ansi(std::io::stderr().is_terminal()).try_init();
}
