//! Events of `petals-tune bench`.

use std::fmt::{self, Display};

use serde::Serialize;

use super::Event;

/// What is about to be timed, printed above the results.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchSetup {
    /// Model id.
    pub(crate) model: String,
    /// Blocks of the model.
    pub(crate) blocks: usize,
    /// Width of its hidden states.
    pub(crate) hidden: usize,
    /// Dtype of hidden states on the wire.
    pub(crate) wire_dtype: String,
}

/// One timed repetition.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchRepetition {
    /// As in [`BenchResult`].
    pub(crate) what: &'static str,
    /// Repetitions so far, this one included.
    pub(crate) number: usize,
    /// Milliseconds.
    pub(crate) ms: f64,
}

/// Figures of one kind of work. Counts are means of a repetition.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchResult {
    /// `forward`, `train`, `decode` or `hop`.
    pub(crate) what: &'static str,
    /// The same with its sizes, for people.
    pub(crate) label: String,
    /// Repetitions that were timed.
    pub(crate) repeats: usize,
    /// Milliseconds of a repetition; for hop of one hop, without the computation.
    pub(crate) median_ms: f64,
    /// The shortest.
    pub(crate) best_ms: f64,
    /// Tokens of text per second at the median; not for hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_s: Option<f64>,
    /// Bytes of frames from the client.
    pub(crate) sent_bytes: f64,
    /// Bytes of frames to the client.
    pub(crate) received_bytes: f64,
    /// Requests that the client had answered.
    pub(crate) requests: f64,
    /// Blocks that servers ran forward, once for each micro-batch that a block sees.
    pub(crate) block_forwards: f64,
    /// Blocks that servers ran backward.
    pub(crate) block_backwards: f64,
    /// Share of the time in which a server computed nothing, on average over the servers that computed at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<f64>,
    /// Each server's part.
    pub(crate) servers: Vec<BenchServer>,
    /// Resident memory of this program afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_bytes: Option<u64>,
}

/// What one server did in a repetition, on average, as it says.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BenchServer {
    /// Peer id.
    pub(crate) peer: String,
    /// Passes answered.
    pub(crate) passes: f64,
    /// Milliseconds of computation.
    pub(crate) computed_ms: f64,
    /// Milliseconds in which passes waited for others.
    pub(crate) queued_ms: f64,
}

impl Event for BenchSetup {
    const NAME: &'static str = "bench_setup";
}

impl Event for BenchRepetition {
    const NAME: &'static str = "bench_repetition";
}

impl Event for BenchResult {
    const NAME: &'static str = "bench";
}

impl Display for BenchSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, blocks, hidden, wire_dtype } = self;
        writeln!(f, "{model}: {blocks} blocks, hidden {hidden}, {wire_dtype} on the wire")?;
        let [what, median, best, rate, sent, received, requests, blocks, idle, memory] =
            ["", "median ms", "best ms", "tokens/s", "sent", "received", "requests", "blocks", "idle", "memory"];
        write!(
            f,
            "{what:<44} {median:>10} {best:>10} {rate:>9} {sent:>11} {received:>11} {requests:>8} {blocks:>9} {idle:>6} {memory:>8}"
        )
    }
}

impl Display for BenchRepetition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.2} ms", self.what, self.ms)
    }
}

impl Display for BenchResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, median_ms, best_ms, sent_bytes, received_bytes, requests, .. } = self;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let rate = or_dash(self.tokens_per_s.map(|rate| format!("{rate:.0}")));
        let idle = or_dash(self.idle.map(|idle| format!("{:.0} %", 100.0 * idle)));
        let blocks = format!("{:.0} + {:.0}", self.block_forwards, self.block_backwards);
        let memory = or_dash(self.resident_bytes.map(|bytes| format!("{} MiB", bytes >> 20)));
        write!(
            f,
            "{label:<44} {median_ms:>10.2} {best_ms:>10.2} {rate:>9} {sent_bytes:>11.0} {received_bytes:>11.0} \
             {requests:>8.1} {blocks:>9} {idle:>6} {memory:>8}"
        )
    }
}
