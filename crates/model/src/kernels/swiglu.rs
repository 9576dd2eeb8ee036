//! See [`crate::ops::swiglu`] for the mathematics.

use rayon::prelude::*;

use super::simd::{sigmoid, vectorized};

/// Rows that one task takes.
const ROWS: usize = 8;

/// `silu(gate) ∘ up`, `[rows, width]`, of gate and up side by side.
pub(crate) fn forward(gate_up: &[f32], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; gate_up.len() / 2];
    y.par_chunks_mut(ROWS * width).zip(gate_up.par_chunks(ROWS * 2 * width)).for_each(|(y, gate_up)| {
        vectorized(|| {
            for (y, row) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
                let (gate, up) = row.split_at(width);
                y.iter_mut().zip(gate).zip(up).for_each(|((y, &gate), up)| *y = gate * sigmoid(gate) * up);
            }
        });
    });
    y
}

/// Replaces gate and up by their gradients, from the gradient `dy` `[rows, width]` of the output.
pub(crate) fn backward(gate_up: &mut [f32], dy: &[f32], width: usize) {
    gate_up.par_chunks_mut(ROWS * 2 * width).zip(dy.par_chunks(ROWS * width)).for_each(|(gate_up, dy)| {
        vectorized(|| {
            for (row, dy) in gate_up.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
                let (gate, up) = row.split_at_mut(width);
                for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                    let (g, u, s) = (*gate, *up, sigmoid(*gate));
                    *gate = dy * u * s * (1.0 + g * (1.0 - s));
                    *up = dy * g * s;
                }
            }
        });
    });
}
