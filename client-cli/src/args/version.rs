//! What `--version` says.

use petals_client::WireVersion;

/// The number of this version.
pub(crate) const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// The number, with what else tells this build from others.
pub(crate) fn version() -> String {
    let wire = format!("wire {}", WireVersion::list(&WireVersion::SPOKEN));
    let features = [("cuda", cfg!(feature = "cuda")), ("vulkan", cfg!(feature = "vulkan"))];
    petals_settings::version(NUMBER, option_env!("PETALS_COMMIT"), &wire, &features)
}
