//! How a long run shows that it is alive: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::CliError;
use crate::output::{Left, Output, Step};
use crate::terminal;

/// Time between two lines where there is no terminal: often enough to see life, rare enough for a log file.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Weight of the latest step in the mean that tells what is left. The first ones open connections and try out how to cut batches.
const NEW_WEIGHT: f64 = 0.2;

/// Progress of a training run.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    log_every: u64,
    total: u64,
    /// Seconds of a step, a running mean.
    step_s: Option<f64>,
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
        let shown = Shown::new(output, "steps", total, done);
        Self { output, log_every: log_every.max(1), total, step_s: None, shown }
    }

    /// Seconds that `steps` more steps will take if they go as the last ones did, the latest of which took `elapsed`.
    pub(crate) fn left(&mut self, elapsed: Duration, steps: u64) -> f64 {
        let last = elapsed.as_secs_f64();
        let mean = self.step_s.map_or(last, |mean| mean + NEW_WEIGHT * (last - mean));
        self.step_s = Some(mean);
        mean * steps as f64
    }

    /// Shows a step.
    ///
    /// # Errors
    /// [`CliError::Failed`] if stdout is closed.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), CliError> {
        let is_last = step.step == self.total;
        let short = || format!("loss {:.4}, {:.0} tokens/s", step.loss, step.tokens_per_s);
        let line = || match is_last {
            true => format!("{step} ({} of {})", step.step, self.total),
            false => format!("{step} ({} of {}, about {} left)", step.step, self.total, Left(step.left_s)),
        };
        self.shown.show(step.step, is_last, short, line);
        if self.output.is_json() && (is_last || step.step.is_multiple_of(self.log_every)) {
            self.output.emit(step)?;
        }
        Ok(())
    }
}

/// Progress of a benchmark.
#[derive(Debug)]
pub(crate) struct Repetitions {
    label: String,
    total: usize,
    shown: Shown,
}

impl Repetitions {
    /// Progress of `total` repetitions of what `label` says.
    pub(crate) fn new(output: Output, label: &str, total: usize) -> Self {
        Self { label: label.to_owned(), total, shown: Shown::new(output, "repetitions", total as u64, 0) }
    }

    /// Shows that `done` repetitions are done, and how long the last one took.
    pub(crate) fn show(&mut self, done: usize, ms: f64) {
        let short = || format!("{}: {ms:.1} ms", self.label);
        let line = || format!("{}: {ms:.1} ms ({done} of {})", self.label, self.total);
        self.shown.show(done as u64, false, short, line);
    }
}

/// Progress of texts that are generated side by side.
#[derive(Debug)]
pub(crate) struct Texts {
    total: usize,
    done: usize,
    tokens: usize,
    started: Instant,
    shown: Shown,
}

impl Texts {
    /// Progress of `total` texts; nothing is shown of a single one.
    pub(crate) fn new(output: Output, total: usize) -> Self {
        let shown = if total > 1 { Shown::new(output, "texts", total as u64, 0) } else { Shown::Nothing };
        Self { total, done: 0, tokens: 0, started: Instant::now(), shown }
    }

    /// One more text has been finished, with `tokens` new tokens; its number, from 1.
    pub(crate) fn finished(&mut self, tokens: usize) -> usize {
        (self.done, self.tokens) = (self.done + 1, self.tokens + tokens);
        let rate = self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let short = || format!("{rate:.1} tokens/s");
        self.shown.show(self.done as u64, false, short, || {
            format!("{} of {} texts, {rate:.1} tokens/s", self.done, self.total)
        });
        self.done
    }
}

/// Progress of tokens that go through the blocks once.
#[derive(Debug)]
pub(crate) struct Tokens {
    total: usize,
    started: Instant,
    shown: Shown,
}

impl Tokens {
    /// Progress of `total` tokens.
    pub(crate) fn new(output: Output, total: usize) -> Self {
        Self { total, started: Instant::now(), shown: Shown::new(output, "tokens", total as u64, 0) }
    }

    /// Shows how many have been through.
    pub(crate) fn reached(&mut self, tokens: usize) {
        let rate = tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let short = || format!("asking the teacher, {rate:.0} tokens/s");
        let line = || format!("asking the teacher: {tokens} of {} tokens, {rate:.0} tokens/s", self.total);
        self.shown.show(tokens as u64, false, short, line);
    }
}

impl Shown {
    fn new(output: Output, unit: &str, total: u64, done: u64) -> Self {
        if io::stderr().is_terminal() {
            Self::Bar(bar(unit, total, done))
        } else if output.is_json() {
            Self::Nothing
        } else {
            Self::Lines { last: None }
        }
    }

    /// Shows the position: `short` beside a bar, or now and then a `line`, which `must` not be left out.
    fn show(&mut self, position: u64, must: bool, short: impl FnOnce() -> String, line: impl FnOnce() -> String) {
        match self {
            Self::Bar(bar) => {
                bar.set_message(short());
                bar.set_position(position);
            }
            Self::Lines { last } if must || last.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) => {
                *last = Some(Instant::now());
                eprintln!("{}", line());
            }
            Self::Lines { .. } | Self::Nothing => {}
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.abandon();
        }
    }
}

fn bar(unit: &str, total: u64, done: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template(&format!("{{bar:24}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left, {{msg}}"))
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = terminal::bars().add(ProgressBar::new(total).with_style(style));
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_the_last_steps() {
        let mut progress = Progress::new(Output::new(true), 100, 0, 1);
        assert_eq!(progress.left(Duration::from_secs(2), 10), 20.0);
        for _ in 0..50 {
            progress.left(Duration::from_secs(1), 10);
        }
        assert!((progress.left(Duration::from_secs(1), 10) - 10.0).abs() < 0.01);
        assert_eq!(progress.left(Duration::from_secs(1), 0), 0.0);
    }
}
