//! Products with small trained tables, spread over rows or, where they are summed over rows, over columns. See
//! [`crate::engine::Engine::times_table_back`] and what follows it for the mathematics.

use rayon::prelude::*;

use super::matmul::{Matrix, product};
use super::rows::HostRows;
use super::rows_of_task;
use super::simd::vectorized;
use crate::engine::shapes::Area;

/// Columns that a task takes where all rows are summed.
const COLUMNS: usize = 128;

/// `x·tableᵀ`.
pub(super) fn times_back(x: &HostRows, area: &Area, table: &HostRows) -> HostRows {
    let (low, width, stride) = (table.height(), table.width(), x.width());
    let mut out = vec![0.0; area.rows.len() * low];
    // Tall parts: the table is turned for each of them.
    let rows = rows_of_task(width) * 8;
    let right = Matrix::new(table.values(), [low, width], width).transposed();
    let parts = out.par_chunks_mut(rows * low).zip(x.part(area.rows.clone()).par_chunks(rows * stride));
    parts.for_each(|(out, x)| {
        let left = Matrix::new(&x[area.column..], [x.len() / stride, width], stride);
        product((out, low), left, right, 1.0, false);
    });
    HostRows::new(out, low)
}

/// `sum += low·table`.
pub(super) fn add_times(sum: &mut HostRows, area: &Area, low: &HostRows, table: &HostRows) {
    let (rank, width, stride) = (table.height(), table.width(), sum.width());
    let rows = rows_of_task(width);
    let right = Matrix::new(table.values(), [rank, width], width);
    let parts = sum.part_mut(area.rows.clone()).par_chunks_mut(rows * stride);
    parts.zip(low.values().par_chunks(rows * rank)).for_each(|(sum, low)| {
        let left = Matrix::new(low, [low.len() / rank, rank], rank);
        product((&mut sum[area.column..], stride), left, right, 1.0, true);
    });
}

/// `lowᵀ·x`.
pub(super) fn gradient(low: &HostRows, x: &HostRows, area: &Area, width: usize) -> HostRows {
    let (rank, rows, stride) = (low.width(), area.rows.len(), x.width());
    let x = x.part(area.rows.clone());
    let left = Matrix::new(low.values(), [rows, rank], rank).transposed();
    let part = |first: usize| {
        let count = COLUMNS.min(width - first);
        let mut out = vec![0.0; rank * count];
        if rows > 0 {
            let right = Matrix::new(&x[area.column + first..], [rows, count], stride);
            product((&mut out, count), left, right, 1.0, false);
        }
        out
    };
    let starts: Vec<usize> = (0..width).step_by(COLUMNS).collect();
    let parts: Vec<Vec<f32>> = starts.par_iter().map(|&first| part(first)).collect();
    let mut out = vec![0.0; rank * width];
    for (first, part) in starts.into_iter().zip(&parts) {
        let count = part.len() / rank;
        for (row, part) in out.chunks_exact_mut(width).zip(part.chunks_exact(count)) {
            row[first..first + count].copy_from_slice(part);
        }
    }
    HostRows::new(out, width)
}

/// `x ∘= scale`, row by row.
pub(super) fn scale(x: &mut HostRows, area: &Area, scale: &HostRows) {
    let (stride, scale) = (x.width(), scale.values());
    let rows = rows_of_task(scale.len());
    x.part_mut(area.rows.clone()).par_chunks_mut(rows * stride).for_each(|x| {
        vectorized(
            #[inline(always)]
            || {
                for row in x.chunks_exact_mut(stride) {
                    let row = &mut row[area.column..area.column + scale.len()];
                    row.iter_mut().zip(scale).for_each(|(x, scale)| *x *= scale);
                }
            },
        );
    });
}

/// The sum over rows of `x ∘ dy`.
pub(super) fn scale_gradient(x: &HostRows, dy: &HostRows, area: &Area, width: usize) -> HostRows {
    let (x_stride, dy_stride) = (x.width(), dy.width());
    let (x, dy) = (x.part(area.rows.clone()), dy.part(area.rows.clone()));
    let mut out = vec![0.0; width];
    out.par_chunks_mut(COLUMNS).enumerate().for_each(|(number, sums)| {
        let first = area.column + number * COLUMNS;
        vectorized(
            #[inline(always)]
            || {
                for (x, dy) in x.chunks_exact(x_stride).zip(dy.chunks_exact(dy_stride)) {
                    let pairs = x[first..].iter().zip(&dy[first..]);
                    sums.iter_mut().zip(pairs).for_each(|(sum, (x, dy))| *sum += x * dy);
                }
            },
        );
    });
    HostRows::new(out, width)
}
