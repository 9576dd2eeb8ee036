//! Where a pass stopped to be finite, for engines whose values are at hand.

use std::cell::Cell;

use super::{Fetched, Leaving};

/// The largest magnitude that blocks are given. A norm squares values and adds the squares up: larger ones would make zeros of the others, and what follows would look like
/// results. No model has such.
const MOST: f32 = 1e15;
/// Values that are looked at without a branch in between.
const RUN: usize = 1 << 12;

/// Remembers the first place.
#[derive(Debug, Default)]
pub(crate) struct HostWatch(Cell<Option<u32>>);

impl HostWatch {
    /// Remembers `place` if a value cannot be squared.
    pub(super) fn enter(&self, values: &[f32], place: u32) {
        if self.0.get().is_none() && !(is_finite(values) && are_small(values)) {
            self.0.set(Some(place));
        }
    }

    /// See [`super::Engine::fetch`].
    pub(super) fn leave<R, F>(
        self,
        leaving: Vec<Leaving<R>>,
        values_and_width: impl Fn(R) -> Result<(Vec<f32>, usize), F>,
    ) -> Result<Fetched, F> {
        let mut matrices = Vec::with_capacity(leaving.len());
        for Leaving { rows, first, place, rounded: _ } in leaving {
            let (mut values, width) = values_and_width(rows)?;
            if first > 0 {
                values = values.split_off(first * width);
            }
            if self.0.get().is_none() && !is_finite(&values) {
                self.0.set(Some(place));
            }
            matrices.push(values);
        }
        Ok(Fetched { matrices, not_finite: self.0.get() })
    }
}

/// Whether no value is NaN or infinite.
pub(crate) fn is_finite(values: &[f32]) -> bool {
    values.chunks(RUN).all(|run| run.iter().fold(true, |all, v| all & v.is_finite()))
}

/// Whether all values can be squared, NaN aside.
pub(crate) fn are_small(values: &[f32]) -> bool {
    values.chunks(RUN).all(|run| run.iter().fold(true, |all, v| all & ((v.abs() <= MOST) | v.is_nan())))
}
