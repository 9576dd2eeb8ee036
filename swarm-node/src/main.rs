//! The `petals-node` program.

use std::process::ExitCode;

use clap::Parser;
use petals_node::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    petals_node::log_to_stderr();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("petals-node: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
