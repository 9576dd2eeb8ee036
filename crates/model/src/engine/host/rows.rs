//! Matrices on the host.

use std::ops::Range;

use rayon::prelude::*;

use super::rows_of_task;
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

/// Copies of the picked rows.
pub(super) fn gather(rows: &HostRows, picked: &[u32]) -> Vec<f32> {
    let row = |row: u32| rows.part(row as usize..row as usize + 1);
    let few = rows_of_task(rows.width());
    if picked.len() <= few {
        return picked.iter().flat_map(|&number| row(number)).copied().collect();
    }
    let mut values = vec![0.0; picked.len() * rows.width()];
    let copies = values.par_chunks_exact_mut(rows.width()).zip(picked).with_min_len(few);
    copies.for_each(|(copy, &number)| copy.copy_from_slice(row(number)));
    values
}

/// Adds the rows of `part` to the picked ones, which ascend, of `sum`.
pub(super) fn add_picked(sum: &mut HostRows, part: &HostRows, picked: &[u32]) {
    let width = sum.width();
    // Each task has the rows from its first picked one up to the next task's.
    let (mut rest, mut tasks) = (sum.values_mut(), Vec::new());
    for (number, picked) in picked.chunks(rows_of_task(width)).enumerate().rev() {
        let start = picked.first().map_or(0, |&row| row as usize);
        let (before, own) = rest.split_at_mut(start * width);
        rest = before;
        tasks.push((own, start, number * rows_of_task(width), picked));
    }
    tasks.into_par_iter().for_each(|(sum, start, at, picked)| {
        for (number, &row) in picked.iter().enumerate() {
            let row = row as usize - start;
            add(&mut sum[row * width..(row + 1) * width], part.part(at + number..at + number + 1));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::noise;

    #[test]
    fn picked_rows_are_gathered_and_added_by_any_number_of_tasks() {
        let width = 700;
        let all = HostRows::new(noise(1, 300 * width), width);
        for picked in [vec![], vec![7], (0..300).collect::<Vec<u32>>(), (0..300).filter(|row| row % 7 < 3).collect()] {
            let gathered = gather(&all, &picked);
            let mut sum = HostRows::new(noise(2, 300 * width), width);
            let mut expected = sum.values().to_vec();
            for (number, &row) in picked.iter().enumerate() {
                let from = row as usize * width;
                assert_eq!(gathered[number * width..(number + 1) * width], all.values()[from..from + width]);
                for column in 0..width {
                    expected[from + column] += all.values()[from + column];
                }
            }
            add_picked(&mut sum, &HostRows::new(gathered, width), &picked);
            assert_eq!(sum.values(), expected);
        }
    }
}
