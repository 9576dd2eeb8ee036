//! `petals-tune`: trains, measures and uses prompt adapters of a model that a swarm serves.

use std::process::ExitCode;

use anyhow::Context;
use petals_settings::{InForce, Parsed, SettingsError};

use crate::args::{Command, command_line};
use crate::error::CliError;
use crate::output::Output;

mod args;
mod chat;
mod commands;
mod data;
mod error;
mod output;
mod progress;
mod serve;
mod terminal;
mod text;

fn main() -> ExitCode {
    let cli = match command_line(std::env::args_os()) {
        Ok(Parsed::Run(cli)) => cli,
        Ok(Parsed::Show(settings)) => return ended(show(settings)),
        Err(SettingsError::CommandLine(error)) => error.exit(),
        Err(error) => return ended(Err(CliError::input(error))),
    };
    terminal::init_logging(cli.verbose);
    ended(run(cli.command, Output::new(cli.json).with_details(cli.verbose > 0)))
}

/// Says why the program ended early, if it did.
fn ended(result: Result<(), CliError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::around_bars(|| eprintln!("error: {}", terminal::plain(&error.to_string())));
            ExitCode::from(error.status())
        }
    }
}

/// Prints which settings a command would have.
fn show(InForce { file, settings, json }: InForce) -> Result<(), CliError> {
    let output = Output::new(json);
    output.emit(&file)?;
    settings.iter().try_for_each(|setting| output.emit(setting))
}

fn run(command: Command, output: Output) -> Result<(), CliError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut command = command;
        let _models = commands::model::find(&mut command, output).await?;
        match command {
            Command::Train(args) => commands::train::run(*args, output).await,
            Command::Distill(args) => commands::distill::run(*args, output).await,
            Command::Eval(args) => commands::eval::run(args, output).await,
            Command::Report(args) => commands::report::run(&args, output),
            Command::Generate(args) => commands::generate::run(*args, output).await,
            Command::Chat(args) => commands::chat::run(*args, output).await,
            Command::Serve(args) => commands::serve::run(*args, output).await,
            Command::Status(args) => commands::status::run(args, output).await,
            Command::Monitor(args) => commands::monitor::run(args, output).await,
            Command::Route(args) => commands::route::run(args, output).await,
            Command::Fingerprint(args) => commands::fingerprint::run(args, output).await,
            Command::Logits(args) => commands::logits::run(args, output).await,
            Command::Export(args) => commands::export::run(args, output).await,
            Command::Bench(args) => commands::bench::run(*args, output).await,
            Command::Completions(args) => commands::manual::completions(&args),
            Command::Man(args) => commands::manual::man(&args),
            // Shown by `command_line`, which alone knows where values come from.
            Command::Config(_) => Ok(()),
        }
    })
}
