//! `petals-tune report`.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  petals-tune report ./sst2-prompt --out report.html
  petals-tune report ./lr-0.01 ./lr-0.03 ./lora --out runs.html";

/// Arguments of `report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    /// Directories that `train` wrote to (its --out), side by side in the order given.
    #[arg(required = true, value_name = "DIR", num_args = 1..)]
    pub(crate) runs: Vec<PathBuf>,

    /// The page to write, one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub(crate) out: PathBuf,
}
