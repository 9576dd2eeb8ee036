//! Choosing the next token from logits.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen. The order of the filters is that of transformers: temperature, top-k, top-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most probable token.
    pub temperature: f32,
    /// Keep only this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Equal seeds choose equally.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// A number that is no sampling parameter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// Negative, NaN or infinite.
    #[error("the temperature {0} must be a number of at least 0")]
    Temperature(f32),
    /// Outside of `(0, 1]`.
    #[error("top-p {0} must be above 0 and at most 1")]
    TopP(f32),
}

/// Draws tokens, one after another.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// [`SamplingError`] for parameters out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        if !sampling.temperature.is_finite() || sampling.temperature < 0.0 {
            return Err(SamplingError::Temperature(sampling.temperature));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(SamplingError::TopP(sampling.top_p));
        }
        Ok(Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) })
    }

    /// Always takes the most probable token.
    pub fn greedy() -> Self {
        Self { sampling: Sampling::default(), rng: ChaCha8Rng::seed_from_u64(0) }
    }

    /// The index of the chosen token among `logits`; `None` if there are none. Equal logits: the first index.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        if self.sampling.temperature == 0.0 {
            let best = (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best })?;
            return u32::try_from(best).ok();
        }
        let kept = self.distribution(logits);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        let chosen = kept.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        let (index, _) = chosen.or(kept.last())?;
        u32::try_from(*index).ok()
    }

    /// The tokens that remain, most probable first, with their probabilities (not normalised again after filtering).
    fn distribution(&self, logits: &[f32]) -> Vec<(usize, f64)> {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if top_k > 0 {
            // Like transformers, everything equal to the k-th logit stays.
            let limit = order.get(top_k - 1).map_or(f32::NEG_INFINITY, |&at| logits[at]);
            order.retain(|&at| logits[at] >= limit);
        }
        let highest = order.first().map_or(0.0, |&at| logits[at]);
        let weight = |at: usize| f64::from((logits[at] - highest) / temperature).exp();
        let total: f64 = order.iter().map(|&at| weight(at)).sum();
        let mut before = 0.0;
        let weighted = order.into_iter().map(|at| (at, weight(at) / total));
        weighted
            .take_while(|(_, probability)| {
                let keep = before < f64::from(top_p);
                before += probability;
                keep
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: usize, top_p: f32) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed: 7 }).unwrap()
    }

    fn shares(mut sampler: Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.choose(logits).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        assert_eq!(sampler(0.0, 0, 1.0).choose(&[0.5, 2.0, 2.0, -1.0]), Some(1));
        assert_eq!(sampler(0.0, 0, 1.0).choose(&[]), None);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits = [1.0f32, 0.0, 2.0];
        let expected: Vec<f64> = logits.iter().map(|&l| f64::from(l / 0.5).exp()).collect();
        let total: f64 = expected.iter().sum();
        for (share, weight) in shares(sampler(0.5, 0, 1.0), &logits, 20_000).iter().zip(expected) {
            assert!((share - weight / total).abs() < 0.015, "{share} for {}", weight / total);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.0f32, 3.0, 2.0, 1.0];
        let few = shares(sampler(1.0, 2, 1.0), &logits, 2000);
        assert!(few[1] > 0.0 && few[2] > 0.0 && few[0] == 0.0 && few[3] == 0.0);
        // Probabilities 0.64, 0.24, 0.09, 0.03: the second is needed to reach 0.7, the third is not.
        let nucleus = shares(sampler(1.0, 0, 0.7), &logits, 2000);
        assert!(nucleus[2] > 0.0 && nucleus[3] == 0.0);
        let one = shares(sampler(1.0, 0, 1e-6), &logits, 100);
        assert!((one[1] - 1.0).abs() < 1e-9, "at least the best one stays");
    }

    #[test]
    fn equal_seeds_draw_equally() {
        let logits: Vec<f32> = (0..50).map(|n| (n % 7) as f32).collect();
        let (mut a, mut b) = (sampler(1.0, 0, 1.0), sampler(1.0, 0, 1.0));
        assert!((0..100).all(|_| a.choose(&logits) == b.choose(&logits)));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(Sampler::new(Sampling { temperature, top_p, ..Sampling::default() }).is_err());
        }
    }
}
