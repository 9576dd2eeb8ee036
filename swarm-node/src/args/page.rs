//! The page that shows the swarm.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Where it is shown, and to whom.
#[derive(Debug, Clone, Args)]
pub struct PageArgs {
    /// Show the swarm as a page for browsers, with /metrics for Prometheus, /healthz and /readyz. Default address: 127.0.0.1:8090, which this
    /// machine alone reaches.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8090")]
    pub page: Option<SocketAddr>,
    /// File with a key that whoever looks at the page must have. Prometheus sends it with `authorization: {credentials_file: FILE}`.
    #[arg(long, value_name = "FILE", requires = "page")]
    pub page_key_file: Option<PathBuf>,
}
