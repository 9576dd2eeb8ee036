//! Lines of the log: to stderr, or held back until whoever asked has had the answers.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Lines that are held at most; of more the latest count.
const MOST_HELD: usize = 2000;

/// Lines that wait.
static HELD: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Logs to stderr; the level comes from `RUST_LOG` and is `warn`, for this project's own code `info`, without it.
pub fn log_to_stderr(format: LogFormat) {
    let log = tracing_subscriber::fmt().with_env_filter(filter()).with_writer(io::stderr);
    let _ = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// Holds the lines back: a command whose answers are to be read shows them behind the answers, or keeps them for a report.
pub fn log_behind_the_answers(format: LogFormat) {
    let log = tracing_subscriber::fmt().with_env_filter(filter()).with_writer(|| Line);
    let _ = match format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// The lines that were held back, which are forgotten.
pub(crate) fn held() -> Vec<String> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
}

/// Whether somebody asked for the log.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|value| !value.is_empty())
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env()
        // The first node of a swarm has nobody to ask, which kad warns of every few minutes.
        .unwrap_or_else(|_| {
            EnvFilter::new("warn,libp2p_kad=error,petals_node=info,petals_swarm=info,petals_model=info")
        })
}

/// A line on its way to those that are held: each is written in one piece.
struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() == MOST_HELD {
            held.pop_front();
        }
        held.push_back(String::from_utf8_lossy(bytes).trim_end().to_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
