//! Requests to stop: Ctrl-C and what else the system has for it.

use anyhow::Context;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::Requests;
#[cfg(windows)]
use windows::Requests;

/// Notices requests to stop, whenever they come. Once this is installed none of them kills the process.
pub(super) struct StopSignal(Requests);

impl StopSignal {
    pub(super) fn install() -> anyhow::Result<Self> {
        Ok(Self(Requests::install().context("cannot handle stop signals")?))
    }

    /// Waits for a signal; a second one ends the process at once.
    pub(super) async fn received(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(130);
        });
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        self.0.next().await;
    }
}
