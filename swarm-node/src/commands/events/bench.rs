//! What `petals-node bench` prints.

use std::fmt::{self, Display};

use serde::Serialize;

/// What is timed, printed above the results.
#[derive(Debug, Clone, Serialize)]
pub struct BenchSetup {
    /// The model's directory.
    pub model: String,
    /// Blocks loaded, `A..B`.
    pub blocks: String,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Bytes of weights held.
    pub weight_bytes: u64,
    /// Device the blocks are on.
    pub device: String,
    /// Dtype of weights and computation.
    pub dtype: String,
    /// Dtype of keys and values in caches.
    pub kv_dtype: String,
    /// Seconds it took to load them.
    pub load_s: f64,
}

/// Figures of one kind of work.
#[derive(Debug, Clone, Serialize)]
pub struct BenchFigures {
    /// `forward`, `forward and stash`, `backward`, `train` (both of them) or `decode`.
    pub what: &'static str,
    /// The same with its sizes, for people.
    pub label: String,
    /// Repetitions that were timed.
    pub repeats: usize,
    /// Milliseconds of a repetition.
    pub median_ms: f64,
    /// The shortest.
    pub best_ms: f64,
    /// Tokens of text per second at the median.
    pub tokens_per_s: f64,
    /// Weights read per second at the median, in 10^9 bytes; decode only, where that is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_gb_per_s: Option<f64>,
    /// Bytes left for the backward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stash_bytes: Option<u64>,
    /// Resident memory of the process afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
}

impl Display for BenchSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, blocks, hidden, weight_bytes, device, dtype, kv_dtype, load_s } = self;
        let mib = weight_bytes >> 20;
        writeln!(
            f,
            "blocks {blocks} of {model} (hidden {hidden}) on {device} in {dtype} (keys and values in {kv_dtype}): {mib} MiB of weights, loaded in {load_s:.1} s"
        )?;
        let [what, median, best, rate, weights, stash, memory] =
            ["", "median ms", "best ms", "tokens/s", "GB/s", "stash", "memory"];
        write!(f, "{what:<44} {median:>10} {best:>10} {rate:>9} {weights:>6} {stash:>9} {memory:>9}")
    }
}

impl Display for BenchFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, median_ms, best_ms, tokens_per_s, .. } = self;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let mib =
            |bytes: Option<u64>| or_dash(bytes.map(|bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))));
        let (weights, stash) = (or_dash(self.weight_gb_per_s.map(|rate| format!("{rate:.1}"))), mib(self.stash_bytes));
        let memory = or_dash(self.resident_bytes.map(|bytes| format!("{} MiB", bytes >> 20)));
        write!(
            f,
            "{label:<44} {median_ms:>10.2} {best_ms:>10.2} {tokens_per_s:>9.0} {weights:>6} {stash:>9} {memory:>9}"
        )
    }
}
