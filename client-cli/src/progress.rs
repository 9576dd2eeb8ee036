//! How a long run shows that it is alive: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::CliError;
use crate::output::{Output, Step};
use crate::terminal;

/// Time between two lines where there is no terminal: often enough to see life, rare enough for a log file.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of a training run.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    log_every: u64,
    total: u64,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
    Nothing,
}

impl Progress {
    /// Progress of a run of `total` steps of which `done` are made. With JSON output every `log_every`-th step is an
    /// event, and lines are printed for nobody.
    pub(crate) fn new(output: Output, total: u64, done: u64, log_every: u64) -> Self {
        let shown = if io::stderr().is_terminal() {
            Shown::Bar(bar(total, done))
        } else if output.is_json() {
            Shown::Nothing
        } else {
            Shown::Lines { last: None }
        };
        Self { output, log_every: log_every.max(1), total, shown }
    }

    /// Shows a step.
    ///
    /// # Errors
    /// [`CliError::Failed`] if stdout is closed.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), CliError> {
        let is_last = step.step == self.total;
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_message(format!("loss {:.4}, {:.0} tokens/s", step.loss, step.tokens_per_s));
                bar.set_position(step.step);
            }
            Shown::Lines { last } if is_last || last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) => {
                *last = Some(Instant::now());
                eprintln!("{step} ({} of {})", step.step, self.total);
            }
            Shown::Lines { .. } | Shown::Nothing => {}
        }
        if self.output.is_json() && (is_last || step.step.is_multiple_of(self.log_every)) {
            self.output.emit(step)?;
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.abandon();
        }
    }
}

fn bar(total: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} steps, {per_sec}, {eta} left, {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = terminal::bars().add(ProgressBar::new(total).with_style(style));
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
