//! Matrices on the host.

use std::ops::Range;

use super::simd::vectorized;

/// Rows of `width` values, back to back.
#[derive(Debug, Clone)]
pub(crate) struct HostRows {
    values: Vec<f32>,
    width: usize,
}

impl HostRows {
    /// # Panics
    /// In debug builds, if `values` is not whole rows.
    pub(super) fn new(values: Vec<f32>, width: usize) -> Self {
        debug_assert!(values.len().is_multiple_of(width), "rows of {width} values");
        Self { values, width }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn height(&self) -> usize {
        self.values.len() / self.width
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(super) fn into_values(self) -> Vec<f32> {
        self.values
    }

    pub(super) fn part(&self, rows: Range<usize>) -> &[f32] {
        &self.values[rows.start * self.width..rows.end * self.width]
    }

    pub(super) fn part_mut(&mut self, rows: Range<usize>) -> &mut [f32] {
        &mut self.values[rows.start * self.width..rows.end * self.width]
    }

    pub(super) fn split(mut self, at: usize) -> (Self, Self) {
        let rest = self.values.split_off(at * self.width);
        let width = self.width;
        (self, Self { values: rest, width })
    }

    pub(super) fn first(mut self, count: usize) -> Self {
        self.values.truncate(count * self.width);
        self
    }

    /// The first `width` columns.
    pub(super) fn left(&self, width: usize) -> Self {
        let values = self.values.chunks_exact(self.width).flat_map(|row| &row[..width]).copied().collect();
        Self { values, width }
    }

    /// Replaces the first `width` columns by those of `left`.
    pub(super) fn set_left(&mut self, left: &[f32], width: usize) {
        let rows = self.values.chunks_exact_mut(self.width).zip(left.chunks_exact(width));
        rows.for_each(|(row, left)| row[..width].copy_from_slice(left));
    }
}

/// Adds `part` to `sum`.
pub(super) fn add(sum: &mut [f32], part: &[f32]) {
    vectorized(
        #[inline(always)]
        || sum.iter_mut().zip(part).for_each(|(sum, v)| *sum += v),
    );
}
