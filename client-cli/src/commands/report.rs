//! `petals-tune report`: what runs measured, as a page to look at.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::args::ReportArgs;
use crate::error::CliError;
use crate::output::{Output, ReportWritten};

mod history;
mod lanes;
mod thinned;

use history::History;

/// Most runs of a page: more lines in a chart cannot be told apart.
const MOST_RUNS: usize = 24;

/// The page; the data goes in where its place is marked.
const PAGE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// A run as the page shows it.
#[derive(Debug, Serialize)]
struct Run {
    name: String,
    #[serde(flatten)]
    history: History,
}

pub(crate) fn run(args: &ReportArgs, output: Output) -> Result<(), CliError> {
    if args.runs.len() > MOST_RUNS {
        let message = format!("{} runs are more than a page can show, which is {MOST_RUNS}", args.runs.len());
        return Err(CliError::Usage(message));
    }
    let names = names(&args.runs);
    let runs = args.runs.iter().zip(names).map(|(path, name)| Ok(Run { name, history: History::read(path)? }));
    let runs: Vec<Run> = runs.collect::<Result<_, CliError>>()?;
    let page = page(&runs).map_err(anyhow::Error::from)?;
    let cannot = |error| CliError::Usage(format!("--out {}: cannot be written: {error}", args.out.display()));
    fs::write(&args.out, page).map_err(cannot)?;
    output.emit(&ReportWritten { out: args.out.clone(), runs: runs.len() })
}

/// The page with its data. Style and script are this program's own; everything else is data, which a script reads as JSON and shows as text.
fn page(runs: &[Run]) -> serde_json::Result<String> {
    // Within a script nothing ends it but `</`, and nothing begins another but `<!--`. In JSON `<` stands in texts only.
    let data = serde_json::to_string(runs)?.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    // Data last: what looks like a place in it is none.
    Ok(PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT).replacen("/*DATA*/", &data, 1))
}

/// What runs are called: their folders' names, with as much of the path as tells them apart.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let parts = |path: &Path| -> Vec<String> {
        let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        whole.iter().map(|part| part.to_string_lossy().into_owned()).collect()
    };
    let all: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let last = |parts: &[String], count: usize| parts[parts.len().saturating_sub(count)..].join("/");
    let most = all.iter().map(Vec::len).max().unwrap_or(0);
    let mut names: Vec<String> = Vec::new();
    for count in 1..=most.max(1) {
        names = all.iter().map(|parts| last(parts, count)).collect();
        let mut seen = HashMap::new();
        names.iter().for_each(|name| *seen.entry(name).or_insert(0) += 1);
        if seen.values().all(|&times| times == 1) {
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests;
