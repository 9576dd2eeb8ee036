//! See [`crate::engine::Engine::normalise`] and its backward for the mathematics.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::simd::{sum2, vectorized};
use super::{filled, rows_of_task};

/// The normed rows of `x`, `[rows, weight.len()]`.
#[allow(unsafe_code)]
pub(crate) fn forward(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let rows = rows_of_task(width);
    let forward_rows = |(y, x): (&mut [MaybeUninit<f32>], &[f32])| {
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let inverse = inverse_rms(x, eps);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        y.write(x * inverse * w);
                    }
                }
            },
        );
    };
    assert!(x.len().is_multiple_of(width), "rows of {width} values");
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).for_each(forward_rows);
    };
    // SAFETY: `y` is as long as `x`, which is whole rows, and every value of every row is written.
    unsafe { filled(x.len(), fill) }
}

/// Replaces the output's gradient `dy` by that of `x`.
pub(crate) fn backward(x: &[f32], weight: &[f32], eps: f32, dy: &mut [f32]) {
    let width = weight.len();
    let rows = rows_of_task(width);
    dy.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).for_each(|(dy, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (dy, x) in dy.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let inverse = inverse_rms(x, eps);
                    dy.iter_mut().zip(weight).for_each(|(g, w)| *g *= w);
                    let along = sum2(dy, x, |g, x| g * x) / width as f32 * inverse * inverse * inverse;
                    dy.iter_mut().zip(x).for_each(|(g, x)| *g = *g * inverse - x * along);
                }
            },
        );
    });
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    (sum2(x, x, |a, b| a * b) / x.len() as f32 + eps).sqrt().recip()
}
