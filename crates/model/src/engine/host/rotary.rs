//! See [`crate::engine::Engine::rotate`] for the mathematics.

use rayon::prelude::*;

use super::rows_of_task;
use super::simd::vectorized;
use crate::engine::rotary::{CosSin, Pairing};

/// Rotates the first `heads` heads of each row of `x` (rows of `width`) in place, backwards if `back`.
pub(super) fn rotate(x: &mut [f32], width: usize, heads: usize, angles: &CosSin, back: bool) {
    let rows = x.len() / width;
    if rows == 0 {
        return;
    }
    let CosSin { cos, sin, pairing: Pairing { head_dim, interleaved } } = angles;
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
                    for head in row.chunks_exact_mut(*head_dim).take(heads) {
                        let turned = &mut head[..2 * pairs];
                        if *interleaved {
                            for (pair, (cos, sin)) in turned.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin))
                            {
                                let [a, b] = *pair;
                                *pair = [a * cos - b * sin * sign, b * cos + a * sin * sign];
                            }
                            continue;
                        }
                        let (first, second) = turned.split_at_mut(pairs);
                        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                            (*a, *b) = (*a * cos - *b * sin * sign, *b * cos + *a * sin * sign);
                        }
                    }
                }
            },
        );
    });
}
