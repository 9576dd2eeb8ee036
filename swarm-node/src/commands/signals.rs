//! What the system and its users tell a running program: to stop, and to read files again.

use anyhow::Context;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::{Hangup, Stop};
#[cfg(windows)]
use windows::{Hangup, Stop};

/// SIGHUP, by which an operator has files read again. Windows has nothing like it.
#[derive(Debug)]
pub(crate) struct ReloadSignal(Hangup);

impl ReloadSignal {
    /// Takes the signal over, which would end the process otherwise.
    pub(crate) fn install() -> anyhow::Result<Self> {
        Ok(Self(Hangup::install().context("cannot handle SIGHUP")?))
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        self.0.next().await;
    }
}

/// Waits for signals that ask the node to stop: Ctrl-C and SIGTERM, and on Windows what closes a console or ends a session.
#[derive(Debug)]
pub(crate) struct StopSignals(Stop);

impl StopSignals {
    /// Takes these signals over, so that none kills the process before it has left the swarm.
    pub(crate) fn install() -> anyhow::Result<Self> {
        Ok(Self(Stop::install().context("cannot handle stop signals")?))
    }

    /// What `work` comes to, or `None` if a signal arrives first; the work is dropped then.
    pub(crate) async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.next() => None,
        }
    }

    /// The next signal.
    pub(crate) async fn next(&mut self) {
        self.0.next().await;
    }
}
