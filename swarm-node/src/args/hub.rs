//! Models that are given by their names on the hub.

use clap::Args;
use petals_settings::byte_size;

/// How models come from the hub.
#[derive(Debug, Clone, Args)]
pub struct HubArgs {
    /// Most bytes that the models in the hub's cache may have together, such as 200G: before anything is fetched, what was not used for longest is removed
    /// from it, but nothing that is in use. Default: as much as the disk holds.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub max_disk: Option<u64>,
}
