//! Which learning rate to train with: a few steps with each of some, from where a run begins, as the range test of Smith 2017 (arXiv 1506.01186)
//! but with a fresh start for each rate. What was tried leaves no trace in the run.

use petals_model::HeadError;

use super::batch::Example;
use super::tuner::{PromptTuner, TuneError};
use crate::adapter::tables::GradientError;

/// Steps at the end of which the mean loss says how good a rate is.
const TAIL: usize = 3;
/// A loss this many times that of the smallest rate on the same batch is one that has blown up.
const SPIKE: f64 = 1.1;
/// Rates whose losses differ by less than this share of what was learnt at best are as good as each other.
const AS_GOOD: f64 = 0.02;

/// What became of a rate.
#[derive(Debug, Clone, PartialEq)]
pub struct TriedRate {
    /// The rate.
    pub rate: f64,
    /// Losses of the steps, each before its update; they end before a loss or a gradient that is not finite.
    pub losses: Vec<f64>,
    /// Whether all steps could be made.
    pub finite: bool,
}

impl TriedRate {
    /// Makes a step with `rate` on each of `batches`, from where `tuner` is, and leaves `tuner` there.
    ///
    /// # Errors
    /// [`TuneError`], but for numbers that are not finite: they are what a rate can lead to.
    pub async fn run(tuner: &PromptTuner, batches: &[Vec<Example>], rate: f64) -> Result<Self, TuneError> {
        let mut own = tuner.fork();
        let mut losses = Vec::with_capacity(batches.len());
        for batch in batches {
            match own.step(batch, rate).await {
                Ok(report) => losses.push(report.loss),
                Err(
                    TuneError::LossNotFinite
                    | TuneError::Gradient(GradientError::NotFinite(_))
                    | TuneError::Model(HeadError::NotFinite(_)),
                ) => return Ok(Self { rate, losses, finite: false }),
                Err(error) => return Err(error),
            }
        }
        Ok(Self { rate, losses, finite: true })
    }

    /// The mean loss of the last steps; `None` if they could not be made.
    pub fn ending(&self) -> Option<f64> {
        let tail = &self.losses[self.losses.len().saturating_sub(TAIL)..];
        (self.finite && !tail.is_empty()).then(|| tail.iter().sum::<f64>() / tail.len() as f64)
    }

    /// Whether its losses stay where those of a smaller rate are on the same batches, or fall below.
    pub fn is_stable(&self, smaller: &Self) -> bool {
        // A first step with any rate has the same loss, and a few larger ones are what momentum begins with.
        let settled = self.losses.len() / 2;
        let pairs = self.losses.iter().zip(&smaller.losses).skip(settled);
        self.finite && pairs.into_iter().all(|(own, other)| *own <= SPIKE * other)
    }
}

/// The best of rates in ascending order: of those that are stable and, to a fiftieth of what was learnt, end with the lowest loss, the largest.
/// `None` if there is none.
pub fn best_rate(tried: &[TriedRate]) -> Option<f64> {
    let smallest = tried.first()?;
    let stable = tried.iter().filter(|rate| rate.is_stable(smallest));
    let endings: Vec<(f64, f64)> = stable.filter_map(|rate| Some((rate.rate, rate.ending()?))).collect();
    let lowest = endings.iter().map(|(_, ending)| *ending).reduce(f64::min)?;
    let highest = endings.iter().map(|(_, ending)| *ending).fold(lowest, f64::max);
    let allowed = lowest + AS_GOOD * (highest - lowest);
    endings.iter().rev().find(|(_, ending)| *ending <= allowed).map(|(rate, _)| *rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(rate: f64, losses: &[f64]) -> TriedRate {
        TriedRate { rate, losses: losses.to_vec(), finite: true }
    }

    #[test]
    fn the_rate_that_learns_most_is_taken_and_of_equal_ones_the_largest() {
        let slow = tried(0.001, &[4.0, 3.9, 3.9, 3.8, 3.8, 3.8]);
        let good = tried(0.01, &[4.0, 3.5, 3.0, 2.5, 2.0, 1.8]);
        let large = tried(0.03, &[4.0, 4.2, 3.1, 2.43, 2.06, 1.82]);
        let larger = tried(0.1, &[4.0, 4.0, 3.9, 3.7, 3.6, 3.5]);
        assert_eq!(best_rate(&[slow.clone(), good.clone(), larger.clone()]), Some(0.01));
        assert_eq!(best_rate(&[slow.clone(), good, large, larger]), Some(0.03));
        assert_eq!(best_rate(std::slice::from_ref(&slow)), Some(0.001));
        assert_eq!(best_rate(&[]), None);
    }

    #[test]
    fn what_blows_up_is_not_taken_even_if_it_ends_well() {
        let slow = tried(0.001, &[4.0, 3.9, 3.9, 3.8, 3.8, 3.8]);
        let spike = tried(0.1, &[4.0, 3.0, 2.0, 5.0, 1.0, 1.0]);
        assert!(!spike.is_stable(&slow));
        assert_eq!(best_rate(&[slow.clone(), spike]), Some(0.001));
        let ended = TriedRate { rate: 0.3, losses: vec![4.0, 1.0], finite: false };
        assert_eq!((ended.ending(), ended.is_stable(&slow)), (None, false));
        assert_eq!(best_rate(&[slow, ended.clone()]), Some(0.001));
        assert_eq!(best_rate(&[ended]), None);
        // Batches that are hard for every rate are no spikes.
        let hard = [tried(0.001, &[4.0, 3.9, 9.0, 3.8]), tried(0.01, &[4.0, 3.0, 9.2, 2.0])];
        assert_eq!(best_rate(&hard), Some(0.01));
    }
}
