//! Signals of Linux and macOS.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub(super) struct Hangup(Signal);

impl Hangup {
    pub(super) fn install() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    pub(super) async fn next(&mut self) {
        // It ends with the process.
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Debug)]
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
