//! See [`crate::engine::Engine::swiglu`] and its backward for the mathematics.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::simd::{LANES, sigmoid, vectorized};
use super::{filled, rows_of_task};

/// `silu(gate) ∘ up`, `[rows, width]`, of gate and up side by side.
#[allow(unsafe_code)]
pub(super) fn forward(gate_up: &[f32], width: usize) -> Vec<f32> {
    let rows = rows_of_task(2 * width);
    let forward_rows = |(y, gate_up): (&mut [MaybeUninit<f32>], &[f32])| {
        vectorized(
            #[inline(always)]
            || {
                for (y, row) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
                    forward_row(y, row.split_at(width));
                }
            },
        );
    };
    assert!(gate_up.len().is_multiple_of(2 * width), "rows of {width} values, twice");
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(rows * width).zip(gate_up.par_chunks(rows * 2 * width)).for_each(forward_rows);
    };
    // SAFETY: `y` has a row for each of `gate_up`, and every value of it is written.
    unsafe { filled(gate_up.len() / 2, fill) }
}

/// Replaces gate and up by their gradients, from the gradient `dy` `[rows, width]` of the output.
pub(super) fn backward(gate_up: &mut [f32], dy: &[f32], width: usize) {
    let rows = rows_of_task(2 * width);
    let backward_rows = |(gate_up, dy): (&mut [f32], &[f32])| {
        vectorized(
            #[inline(always)]
            || {
                for (row, dy) in gate_up.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
                    backward_row(row.split_at_mut(width), dy);
                }
            },
        );
    };
    gate_up.par_chunks_mut(rows * 2 * width).zip(dy.par_chunks(rows * width)).for_each(backward_rows);
}

/// Takes whole registers first: a short row would spend its time in the scalar rest of an unrolled loop.
#[inline(always)]
fn forward_row(y: &mut [MaybeUninit<f32>], (gate, up): (&[f32], &[f32])) {
    let activate = |((y, &gate), &up): ((&mut MaybeUninit<f32>, &f32), &f32)| {
        y.write(gate * sigmoid(gate) * up);
    };
    let (ys, y_rest) = y.as_chunks_mut::<LANES>();
    let ((gates, gate_rest), (ups, up_rest)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
    for ((y, gate), up) in ys.iter_mut().zip(gates).zip(ups) {
        y.iter_mut().zip(gate).zip(up).for_each(activate);
    }
    y_rest.iter_mut().zip(gate_rest).zip(up_rest).for_each(activate);
}

#[inline(always)]
fn backward_row((gate, up): (&mut [f32], &mut [f32]), dy: &[f32]) {
    let differentiate = |((gate, up), &dy): ((&mut f32, &mut f32), &f32)| {
        let (g, u, s) = (*gate, *up, sigmoid(*gate));
        *gate = dy * u * s * (1.0 + g * (1.0 - s));
        *up = dy * g * s;
    };
    let (dys, dy_rest) = dy.as_chunks::<LANES>();
    let ((gates, gate_rest), (ups, up_rest)) = (gate.as_chunks_mut::<LANES>(), up.as_chunks_mut::<LANES>());
    for ((gate, up), dy) in gates.iter_mut().zip(ups).zip(dys) {
        gate.iter_mut().zip(up).zip(dy).for_each(differentiate);
    }
    gate_rest.iter_mut().zip(up_rest).zip(dy_rest).for_each(differentiate);
}
