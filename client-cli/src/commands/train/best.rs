//! The best of a run's measurements on held-out data.

/// Which one it is, and how many there were behind it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Best {
    best: Option<(u64, f64)>,
    in_vain: u64,
}

impl Best {
    /// Takes note of the loss after `step` steps. Whether it is lower than all before.
    pub(super) fn see(&mut self, step: u64, loss: f64) -> bool {
        let better = self.best.is_none_or(|(_, best)| loss < best);
        if better {
            (self.best, self.in_vain) = (Some((step, loss)), 0);
        } else {
            self.in_vain += 1;
        }
        better
    }

    /// After how many steps it was.
    pub(super) fn step(&self) -> Option<u64> {
        self.best.map(|(step, _)| step)
    }

    /// How many measurements in a row were not better.
    pub(super) fn in_vain(&self) -> u64 {
        self.in_vain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_loss_counts_and_the_first_of_equal_ones() {
        let mut best = Best::default();
        let seen = [(2, 0.5), (4, 0.25), (6, 0.25), (8, f64::NAN)].map(|(step, loss)| best.see(step, loss));
        assert_eq!(seen, [true, true, false, false]);
        assert_eq!((best.step(), best.in_vain()), (Some(4), 2));
    }
}
