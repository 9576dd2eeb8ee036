//! Results on stdout: lines for people, or one JSON object per line.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::PathBuf;

use petals_client::TrafficCount;
use petals_hub::Progress;
use serde::Serialize;

use crate::error::CliError;
use crate::terminal;

mod bench;
mod chat;
mod data;
mod eval;
mod explain;
mod fingerprint;
mod generated;
mod rates;
mod run;
mod samples;
mod settings;
mod status;
mod swarm;
mod time;

pub(crate) use bench::{BenchRepetition, BenchResult, BenchServer, BenchSetup};
pub(crate) use chat::{Answered, Notice, Serving};
pub(crate) use data::{Measured, Planned, ReadData};
pub(crate) use eval::Eval;
pub(crate) use explain::{Considered, TrainingRoute};
pub(crate) use fingerprint::{BlockWeights, Fingerprint};
pub(crate) use generated::{Course, Generated};
pub(crate) use rates::{RateChosen, RateTried};
pub(crate) use run::{DataFile, ReportWritten, RouteTaken, RunBegins, RunGoesOn, RunSettings};
pub(crate) use samples::{Sample, Samples};
pub(crate) use status::{Holders, Monitoring, Status, StatusModel};
pub(crate) use swarm::{
    Disagreement, HopFailed, OtherWeights, Outpaced, RelayFailed, Route, RouteHop, Server, UntrueResult, Verified,
    short,
};

pub(crate) use time::{Estimated, Left};

/// Something a command tells on stdout: readable, and as JSON under a fixed name.
pub(crate) trait Event: Display + Serialize {
    /// Value of the JSON field `event`.
    const NAME: &'static str;
}

/// Prints events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    details: bool,
}

#[derive(Serialize)]
struct Tagged<'a, E> {
    event: &'static str,
    #[serde(flatten)]
    body: &'a E,
}

impl Output {
    /// Output for people, or with `json` for scripts.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, details: false }
    }

    /// With `details` that people who ask for more want to see.
    pub(crate) fn with_details(self, details: bool) -> Self {
        Self { details, ..self }
    }

    /// Whether people want to see more than results.
    pub(crate) fn has_details(self) -> bool {
        self.details
    }

    /// Whether scripts read this.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints one event as one line (for people, generated text may have several).
    ///
    /// # Errors
    /// [`CliError::Failed`] if stdout is closed.
    pub(crate) fn emit<E: Event>(self, event: &E) -> Result<(), CliError> {
        let line = self.line(event).map_err(anyhow::Error::from)?;
        let written = terminal::around_bars(|| {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{line}").and_then(|()| stdout.flush())
        });
        Ok(written.map_err(|error| anyhow::Error::new(error).context("cannot write to stdout"))?)
    }

    /// An event as scripts read it.
    pub(crate) fn tagged<E: Event>(event: &E) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(Tagged { event: E::NAME, body: event })
    }

    /// An event as it is printed.
    pub(crate) fn line<E: Event>(self, event: &E) -> serde_json::Result<String> {
        if self.json { serde_json::to_string(&Tagged { event: E::NAME, body: event }) } else { Ok(event.to_string()) }
    }
}

/// One optimiser step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Step {
    /// Steps made, this one included.
    pub(crate) step: u64,
    /// Mean cross-entropy over the labels of the step's batch, before the update.
    pub(crate) loss: f64,
    /// Learning rate of the update.
    pub(crate) lr: f64,
    /// Text tokens through the blocks per second, forward and backward.
    pub(crate) tokens_per_s: f64,
    /// Global norm of the gradients before clipping.
    pub(crate) grad_norm: f64,
    /// What crossed the network, and the blocks that were run for it.
    #[serde(flatten)]
    pub(crate) traffic: TrafficCount,
    /// Seconds that the steps still to be made will take, as the last ones went.
    pub(crate) left_s: f64,
}

/// A run goes on from its saved state.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Resumed {
    /// Steps made before.
    pub(crate) step: u64,
}

/// Adapter and training state were written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Saved {
    /// Steps made.
    pub(crate) step: u64,
}

/// A run ends before its last step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EndedEarly {
    /// Steps made.
    pub(crate) step: u64,
    /// Measurements on held-out data in a row that were not better.
    pub(crate) in_vain: u64,
}

/// The adapter of the best measurement is the one that is left.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Selected {
    /// Steps that it was trained for.
    pub(crate) step: u64,
}

/// Nobody serves some blocks for now, or no member of the swarm was found so far.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Waiting {
    /// Why, with the blocks.
    pub(crate) reason: String,
    /// Seconds until the next attempt.
    pub(crate) retry_in_s: f64,
    /// Seconds until the command gives up.
    pub(crate) left_s: f64,
}

/// Training is complete.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Done {
    /// Directory of the adapter.
    pub(crate) adapter: PathBuf,
}

/// Logits were written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LogitsWritten {
    /// The file.
    pub(crate) out: PathBuf,
    /// Rows, tokens, vocabulary.
    pub(crate) shape: [usize; 3],
}

/// A teacher was asked.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Taught {
    /// Tokens that it has in front.
    pub(crate) context_tokens: usize,
    /// Its mean loss on the held-out texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<f64>,
    /// The same with nothing in front.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) loss_without: Option<f64>,
}

/// An adapter was turned into a prefix of keys and values.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Exported {
    /// Directory of the new adapter.
    pub(crate) out: PathBuf,
    /// Rows of the prefix.
    pub(crate) rows: usize,
}

/// An adapter was folded into a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Merged {
    /// The checkpoint's directory.
    pub(crate) out: PathBuf,
    /// Matrices that changed.
    pub(crate) matrices: usize,
}

impl Event for Progress {
    const NAME: &'static str = "download";
}

impl Event for Step {
    const NAME: &'static str = "step";
}

impl Event for Resumed {
    const NAME: &'static str = "resumed";
}

impl Event for Saved {
    const NAME: &'static str = "saved";
}

impl Event for EndedEarly {
    const NAME: &'static str = "ended_early";
}

impl Event for Selected {
    const NAME: &'static str = "selected";
}

impl Event for Waiting {
    const NAME: &'static str = "waiting";
}

impl Event for Done {
    const NAME: &'static str = "done";
}

impl Event for LogitsWritten {
    const NAME: &'static str = "logits";
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, loss, lr, tokens_per_s, .. } = self;
        write!(f, "step {step}: loss {loss:.4}, lr {lr:.2e}, {tokens_per_s:.0} tokens/s")
    }
}

impl Display for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resuming after step {}", self.step)
    }
}

impl Display for EndedEarly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ended after step {}: the held-out loss has not become lower {} times in a row",
            self.step, self.in_vain
        )
    }
}

impl Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the adapter of step {} has the lowest held-out loss and is kept", self.step)
    }
}

impl Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "saved after step {}", self.step)
    }
}

impl Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waiting: {}; trying for another {}", self.reason, Left(self.left_s))
    }
}

impl Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "done: the adapter is in {}", self.adapter.display())
    }
}

impl Display for LogitsWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "logits {:?} written to {}", self.shape, self.out.display())
    }
}

impl Event for Taught {
    const NAME: &'static str = "taught";
}

impl Display for Taught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the teacher has {} tokens in front", self.context_tokens)?;
        let Some((loss, without)) = self.loss.zip(self.loss_without) else { return Ok(()) };
        write!(f, ": held-out loss {loss:.4}, and {without:.4} with nothing in front")
    }
}

impl Event for Exported {
    const NAME: &'static str = "exported";
}

impl Event for Merged {
    const NAME: &'static str = "merged";
}

impl Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a prefix of {} rows of keys and values is in {}", self.rows, self.out.display())
    }
}

impl Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the checkpoint in {} has {} changed matrices", self.out.display(), self.matrices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_documented_json() {
        let json = Output::new(true);
        let traffic = TrafficCount { sent: 5, received: 4, requests: 2, block_forwards: 8, block_backwards: 8 };
        let step = Step { step: 3, loss: 0.25, lr: 0.01, tokens_per_s: 100.0, grad_norm: 2.0, traffic, left_s: 7.5 };
        let line = r#"{"event":"step","step":3,"loss":0.25,"lr":0.01,"tokens_per_s":100.0,"grad_norm":2.0,"#;
        let rest = r#""sent":5,"received":4,"requests":2,"block_forwards":8,"block_backwards":8,"left_s":7.5}"#;
        assert_eq!(json.line(&step).unwrap(), format!("{line}{rest}"));
        let done = Done { adapter: "out".into() };
        assert_eq!(json.line(&done).unwrap(), r#"{"event":"done","adapter":"out"}"#);
    }
}
