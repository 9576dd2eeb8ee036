//! `petals-tune completions` and `petals-tune man`.

use std::io;

use anyhow::Context;
use clap::CommandFactory;
use petals_settings::{CompletionsArgs, ManArgs};

use crate::args::{Cli, NUMBER};
use crate::error::CliError;

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), CliError> {
    args.write(Cli::command(), &mut io::stdout()).context("cannot write the completions")?;
    Ok(())
}

pub(crate) fn man(args: &ManArgs) -> Result<(), CliError> {
    let pages = args.write(Cli::command(), NUMBER).map_err(CliError::input)?;
    println!("{pages} pages in {}", args.out.display());
    Ok(())
}
