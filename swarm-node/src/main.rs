//! The `petals-node` program.

use std::process::ExitCode;

use petals_node::{Command, Parsed, SettingsError, command_line, run, show_settings};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match command_line(std::env::args_os()) {
        Ok(Parsed::Run(cli)) => cli,
        Ok(Parsed::Show(settings)) => {
            show_settings(settings);
            return ExitCode::SUCCESS;
        }
        Err(SettingsError::CommandLine(error)) => error.exit(),
        Err(error) => {
            eprintln!("petals-node: {error}");
            return ExitCode::from(2);
        }
    };
    match cli.command {
        Command::Doctor(_) => petals_node::log_behind_the_answers(cli.log_format),
        _ => petals_node::log_to_stderr(cli.log_format),
    }
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("petals-node: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
