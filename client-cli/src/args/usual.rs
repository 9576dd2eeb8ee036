//! What `train` does where no flag says otherwise: what did best for each mode where all were measured (`scripts/bench-learning`; the figures are in
//! docs/benchmarks.md, "How well methods learn").

use petals_client::{Schedule, TuningMode, WeightMode};

/// How the learning rate moves after the warm-up.
pub(super) const SCHEDULE: Schedule = Schedule::Linear;
/// Part of the steps over which the learning rate rises, and most of them.
const WARMUP: (u64, u64) = (20, 100);

/// Steps over which the learning rate rises.
pub(super) fn warmup(steps: u64) -> u64 {
    (steps / WARMUP.0).min(WARMUP.1)
}

/// The highest learning rate of a mode. Low-rank products begin at nothing and grow by both of their factors, so that steps as large as those of
/// prompts throw them about.
pub(super) fn lr(mode: TuningMode) -> f64 {
    match (mode.prefix, mode.weights) {
        (_, Some(WeightMode::Lora)) => 0.001,
        _ => 0.01,
    }
}
