//! Which examples make up which batch: a function of the step alone, so that a resumed run goes on where it was.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Batches among which examples are sorted by length. Larger windows pad less but mix less.
const WINDOW: usize = 64;

/// In which order examples are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchOrder {
    /// Consecutive examples in file order. Every batch is full: the next epoch's first examples follow the last ones.
    File,
    /// Every example once per epoch, shuffled anew for each, similar lengths together. An epoch's last batch may be short.
    Shuffled {
        /// Equal seeds give equal orders.
        seed: u64,
    },
}

/// Assigns examples to steps.
#[derive(Debug, Clone)]
pub(crate) struct BatchPlan {
    lengths: Vec<usize>,
    batch_size: usize,
    order: BatchOrder,
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl BatchPlan {
    /// A plan for examples with these numbers of tokens; at least one example.
    pub(crate) fn new(lengths: Vec<usize>, batch_size: usize, order: BatchOrder) -> Self {
        Self { lengths, batch_size: batch_size.max(1), order, epoch: None }
    }

    /// Steps of this many epochs.
    pub(crate) fn steps_of(&self, epochs: u64) -> u64 {
        let examples = self.lengths.len() as u64;
        match self.order {
            BatchOrder::File => examples.saturating_mul(epochs).div_ceil(self.batch_size as u64),
            BatchOrder::Shuffled { .. } => examples.div_ceil(self.batch_size as u64).saturating_mul(epochs),
        }
    }

    /// Steps of one epoch, at least 1.
    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.steps_of(1).max(1)
    }

    /// The examples of a step, counted from 0.
    pub(crate) fn batch(&mut self, step: u64) -> Vec<usize> {
        match self.order {
            BatchOrder::File => self.consecutive(step),
            BatchOrder::Shuffled { seed } => {
                let (epoch, at) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
                if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
                    self.epoch = Some((epoch, self.shuffled(seed, epoch)));
                }
                let batches = self.epoch.as_ref().map(|(_, batches)| batches.as_slice()).unwrap_or_default();
                batches.get(at as usize).cloned().unwrap_or_default()
            }
        }
    }

    fn consecutive(&self, step: u64) -> Vec<usize> {
        let examples = self.lengths.len() as u128;
        let start = u128::from(step) * self.batch_size as u128;
        (start..).take(self.batch_size).map(|at| (at % examples.max(1)) as usize).collect()
    }

    fn shuffled(&self, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch);
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        order.shuffle(&mut rng);
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for window in order.chunks_mut(WINDOW * self.batch_size) {
            window.sort_by_key(|&example| self.lengths[example]);
            batches.extend(window.chunks(self.batch_size).map(<[usize]>::to_vec));
        }
        batches.shuffle(&mut rng);
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(examples: usize, batch_size: usize, order: BatchOrder) -> BatchPlan {
        BatchPlan::new((0..examples).map(|i| 1 + i * 7 % 50).collect(), batch_size, order)
    }

    #[test]
    fn file_order_takes_consecutive_examples_and_wraps_round() {
        let mut plan = plan(10, 4, BatchOrder::File);
        let batches: Vec<Vec<usize>> = (0..4).map(|step| plan.batch(step)).collect();
        assert_eq!(batches, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]);
        assert_eq!((plan.steps_of(1), plan.steps_of(2), plan.steps_of(4)), (3, 5, 10));
        let mut small = self::plan(2, 5, BatchOrder::File);
        assert_eq!(small.batch(1), [1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_shuffled_epoch_has_every_example_once_and_another_order_each_time() {
        let mut plan = plan(1003, 4, BatchOrder::Shuffled { seed: 3 });
        assert_eq!(plan.steps_per_epoch(), 251);
        let mut epochs = Vec::new();
        for epoch in 0..2 {
            let order: Vec<usize> = (0..251).flat_map(|at| plan.batch(epoch * 251 + at)).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..1003).collect::<Vec<_>>());
            epochs.push(order);
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn any_step_can_be_asked_for_first() {
        let shuffled = BatchOrder::Shuffled { seed: 3 };
        let mut from_start = plan(100, 8, shuffled);
        let all: Vec<Vec<usize>> = (0..40).map(|step| from_start.batch(step)).collect();
        for step in [39, 5, 20] {
            assert_eq!(plan(100, 8, shuffled).batch(step as u64), all[step]);
        }
        assert_ne!(plan(100, 8, BatchOrder::Shuffled { seed: 4 }).batch(0), all[0]);
    }

    #[test]
    fn shuffled_batches_have_similar_lengths() {
        let mut plan = plan(1000, 10, BatchOrder::Shuffled { seed: 1 });
        let spread = |batch: &[usize]| {
            let lengths = batch.iter().map(|&i| 1 + i * 7 % 50);
            lengths.clone().max().unwrap() - lengths.min().unwrap()
        };
        let total: usize = (0..100).map(|step| spread(&plan.batch(step))).sum();
        assert!(total < 400, "random batches would spread over about 4000, these over {total}");
    }
}
