//! See [`crate::engine::Engine::normalise`] and its backward for the mathematics.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::simd::{LANES, sum2, vectorized};
use super::{filled, rows_of_task};
use crate::checkpoint::NormWeights;

/// The normed rows of `x`.
#[allow(unsafe_code)]
pub(crate) fn forward(norm: &NormWeights, x: &[f32]) -> Vec<f32> {
    let width = norm.weight.len();
    let rows = rows_of_task(width);
    let forward_rows = |(y, x): (&mut [MaybeUninit<f32>], &[f32])| {
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let Scale { mean, inverse } = scale(norm, x);
                    match &norm.bias {
                        None => {
                            for ((y, x), w) in y.iter_mut().zip(x).zip(&norm.weight) {
                                y.write((x - mean) * inverse * w);
                            }
                        }
                        Some(bias) => {
                            for (((y, x), w), b) in y.iter_mut().zip(x).zip(&norm.weight).zip(bias) {
                                y.write((x - mean) * inverse * w + b);
                            }
                        }
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
pub(crate) fn backward(norm: &NormWeights, x: &[f32], dy: &mut [f32]) {
    let width = norm.weight.len();
    let rows = rows_of_task(width);
    dy.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).for_each(|(dy, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (dy, x) in dy.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let Scale { mean, inverse } = scale(norm, x);
                    dy.iter_mut().zip(&norm.weight).for_each(|(g, w)| *g *= w);
                    let along = sum2(dy, x, |g, x| g * (x - mean)) / width as f32 * inverse * inverse * inverse;
                    let shift = if norm.centred { sum(dy) / width as f32 * inverse } else { 0.0 };
                    dy.iter_mut().zip(x).for_each(|(g, x)| *g = *g * inverse - (x - mean) * along - shift);
                }
            },
        );
    });
}

/// How a row is normed: `(x - mean) · inverse`.
#[derive(Clone, Copy)]
struct Scale {
    mean: f32,
    inverse: f32,
}

#[inline(always)]
fn scale(norm: &NormWeights, x: &[f32]) -> Scale {
    let mean = if norm.centred { sum(x) / x.len() as f32 } else { 0.0 };
    let square = sum2(x, x, |a, _| (a - mean) * (a - mean)) / x.len() as f32;
    Scale { mean, inverse: (square + norm.eps).sqrt().recip() }
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter().chain(rest).sum()
}
