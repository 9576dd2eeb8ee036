//! What `train` does where no flag says otherwise: what did best for each mode where all were measured (`scripts/bench-learning`; the figures are in
//! docs/benchmarks.md, "How well methods learn").

use petals_client::{PrefixMode, Schedule, TuningMode, WeightMode};

/// How the learning rate moves after the warm-up.
pub(super) const SCHEDULE: Schedule = Schedule::Linear;
/// Part of the steps over which the learning rate rises, and most of them.
const WARMUP: (u64, u64) = (20, 100);

/// Steps over which the learning rate rises.
pub(super) fn warmup(steps: u64) -> u64 {
    (steps / WARMUP.0).min(WARMUP.1)
}

/// The width of the model on which rates were measured. What enters a matrix is summed over the width, and every value of a table moves by about the
/// rate in a step of AdamW, so that wider models need smaller ones in proportion (Yang et al. 2022, *Tensor Programs V*).
const WIDTH: f64 = 256.0;

/// The highest learning rate of a mode for a model of this hidden size.
pub(crate) fn lr(mode: TuningMode, hidden: usize) -> f64 {
    // Both halves of a combination learn at the rate of the slower one.
    let of_prefix = mode.prefix.map(|prefix| match prefix {
        PrefixMode::Ptune => 0.03,
        PrefixMode::DeepPtune => 0.01,
        PrefixMode::Prefix => 0.02,
    });
    let of_weights = mode.weights.map(|weights| match weights {
        WeightMode::Lora => 0.01,
        WeightMode::Ia3 => 0.1,
    });
    let measured = [of_prefix, of_weights].into_iter().flatten().fold(f64::INFINITY, f64::min);
    let rate = measured * (WIDTH / hidden.max(1) as f64).min(1.0);
    // With two digits, as people write them.
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_with_the_width_and_combinations_take_the_smaller_one() {
        let lr = |mode: &str, hidden| lr(mode.parse().unwrap(), hidden);
        assert_eq!([lr("lora", 128), lr("lora", 256), lr("lora", 1024)], [0.01, 0.01, 0.0025]);
        assert_eq!([lr("prefix", 256), lr("prefix+lora", 256), lr("ptune+ia3", 512)], [0.02, 0.01, 0.015]);
    }
}
