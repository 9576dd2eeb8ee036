//! How a download shows that it is alive.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Fetches of fewer bytes are over before anybody has read of them.
const WORTH_A_LINE: u64 = 1 << 20;

/// What happens while files come.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Progress {
    /// Files are about to come, or some of their bytes have.
    Coming {
        /// The model.
        model: String,
        /// Files that are fetched.
        files: usize,
        /// Bytes of them that are here, with those of earlier attempts.
        done_bytes: u64,
        /// All their bytes.
        bytes: u64,
    },
    /// Nothing comes for a while.
    Waiting {
        /// The model.
        model: String,
        /// Why.
        reason: String,
        /// Seconds until the next attempt.
        retry_in_s: f64,
    },
    /// A file comes from another server, or the rest of one.
    Taking {
        /// The model.
        model: String,
        /// The file.
        file: String,
        /// The server's peer id.
        from: String,
    },
    /// A server gave less than it said, or something else; it is not asked for a while, and the file comes from elsewhere.
    Left {
        /// The model.
        model: String,
        /// The file.
        file: String,
        /// The server's peer id.
        from: String,
        /// What was wrong.
        reason: String,
    },
    /// Something old was removed from the cache to make room.
    Removed {
        /// Its model.
        model: String,
        /// How many bytes it had.
        bytes: u64,
    },
    /// All of them are here.
    Done {
        /// The model.
        model: String,
        /// Its commit.
        commit: String,
        /// Files that were fetched.
        files: usize,
        /// Bytes of these.
        bytes: u64,
        /// Bytes of these that other servers gave.
        from_peers: u64,
        /// Seconds that it took.
        seconds: f64,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coming { model, files, done_bytes, bytes } => {
                write!(f, "downloading {model}: {} of {} in {}", size(*done_bytes), size(*bytes), plural(*files))
            }
            Self::Waiting { model, reason, retry_in_s } => {
                write!(f, "downloading {model}: {reason}; next attempt in {retry_in_s:.0} s")
            }
            Self::Removed { model, bytes } => {
                write!(f, "removed {} of {model}, which was not used for longest", size(*bytes))
            }
            Self::Taking { model, file, from } => write!(f, "downloading {model}: {file} from peer {from}"),
            Self::Left { model, file, from, reason } => {
                write!(f, "downloading {model}: {file} goes on without peer {from}: {reason}")
            }
            Self::Done { model, files, bytes, from_peers, seconds, .. } => {
                write!(f, "downloaded {model}: {} in {}, after {seconds:.1} s", size(*bytes), plural(*files))?;
                if *from_peers > 0 { write!(f, ", {} of it from peers", size(*from_peers)) } else { Ok(()) }
            }
        }
    }
}

fn plural(files: usize) -> String {
    if files == 1 { "one file".to_owned() } else { format!("{files} files") }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=0xf_ffff => format!("{:.1} KiB", bytes as f64 / f64::from(1 << 10)),
        0x10_0000..=0x3fff_ffff => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Shows progress on stderr: a bar on a terminal, a line now and then elsewhere.
#[derive(Debug, Default)]
pub struct Meter {
    bars: Option<MultiProgress>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Meter {
    /// A meter whose bar is one of `bars`, if the program has others.
    pub fn new(bars: Option<MultiProgress>) -> Self {
        Self { bars, now: Mutex::default() }
    }

    /// Shows what happens.
    pub fn show(&self, progress: &Progress) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let terminal = io::stderr().is_terminal();
        match progress {
            Progress::Coming { bytes, .. } | Progress::Done { bytes, .. } if *bytes < WORTH_A_LINE => {}
            Progress::Coming { model, done_bytes, bytes, .. } if terminal => {
                let bar = now.bar.get_or_insert_with(|| self.bar(model, *done_bytes, *bytes));
                bar.set_length(*bytes);
                bar.set_position(*done_bytes);
            }
            Progress::Coming { .. } => {
                if now.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) {
                    now.last_line = Some(Instant::now());
                    eprintln!("{progress}");
                }
            }
            Progress::Waiting { .. } | Progress::Removed { .. } | Progress::Taking { .. } | Progress::Left { .. } => {
                match &now.bar {
                    Some(bar) => bar.println(progress.to_string()),
                    None => eprintln!("{progress}"),
                }
            }
            Progress::Done { .. } => {
                if let Some(bar) = now.bar.take() {
                    bar.finish_and_clear();
                }
                now.last_line = None;
                eprintln!("{progress}");
            }
        }
    }

    fn bar(&self, model: &str, done: u64, bytes: u64) -> ProgressBar {
        let template = "{msg} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(bytes).with_style(style).with_message(model.to_owned());
        let bar = match &self.bars {
            Some(bars) => bars.add(bar),
            None => bar,
        };
        bar.set_position(done);
        bar.reset_eta();
        bar
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // What failed is said below the bar.
        if let Some(bar) = self.now.lock().unwrap_or_else(PoisonError::into_inner).bar.take() {
            bar.abandon();
        }
    }
}
