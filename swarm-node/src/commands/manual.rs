//! `petals-node completions` and `petals-node man`.

use std::io;

use anyhow::Context;
use clap::CommandFactory;
use petals_settings::{CompletionsArgs, ManArgs};

use crate::args::{Cli, NUMBER};
use crate::error::NodeError;

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), NodeError> {
    args.write(Cli::command(), &mut io::stdout()).context("cannot write the completions")?;
    Ok(())
}

pub(crate) fn man(args: &ManArgs) -> Result<(), NodeError> {
    let pages = args.write(Cli::command(), NUMBER).map_err(NodeError::input)?;
    println!("{pages} pages in {}", args.out.display());
    Ok(())
}
