//! See [`crate::engine::Engine::rotate`] for the mathematics.

use rayon::prelude::*;

use super::rows_of_task;
use super::simd::vectorized;

/// Rotates the first `heads` heads of each row of `x` (rows of `width`) in place, backwards if `back`.
/// The cosines and sines are `[rows, head_dim / 2]`.
pub(super) fn rotate(x: &mut [f32], width: usize, heads: usize, (cos, sin): (&[f32], &[f32]), back: bool) {
    let rows = x.len() / width;
    if rows == 0 {
        return;
    }
    let pairs = cos.len() / rows;
    let sign = if back { -1.0 } else { 1.0 };
    let rows = rows_of_task(width);
    let angles = cos.par_chunks(rows * pairs).zip(sin.par_chunks(rows * pairs));
    x.par_chunks_mut(rows * width).zip(angles).for_each(|(x, (cos, sin))| {
        vectorized(
            #[inline(always)]
            || {
                let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
                for (row, (cos, sin)) in x.chunks_exact_mut(width).zip(angles) {
                    for head in row.chunks_exact_mut(2 * pairs).take(heads) {
                        let (first, second) = head.split_at_mut(pairs);
                        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                            (*a, *b) = (*a * cos - *b * sin * sign, *b * cos + *a * sin * sign);
                        }
                    }
                }
            },
        );
    });
}
