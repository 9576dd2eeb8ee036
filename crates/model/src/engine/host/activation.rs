//! See [`crate::engine::Engine::activate`] and its backward for the mathematics.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::simd::{LANES, exp, normal, sigmoid, tanh, vectorized};
use super::{filled, rows_of_task};
use crate::config::{Activation, MlpDesign};

/// What the activation lets through, `[rows, width]`, of the MLP's inside.
pub(super) fn forward(mlp: MlpDesign, inside: &[f32], width: usize) -> Vec<f32> {
    let side = [mlp.sides() * width, width];
    match mlp.activation {
        Activation::Silu => run(
            inside,
            side,
            #[inline(always)]
            |g, u| g * sigmoid(g) * u,
        ),
        Activation::Gelu => run(
            inside,
            side,
            #[inline(always)]
            |g, u| gelu(g).0 * u,
        ),
        Activation::GeluTanh => run(
            inside,
            side,
            #[inline(always)]
            |g, u| gelu_tanh(g).0 * u,
        ),
        Activation::Relu => run(
            inside,
            side,
            #[inline(always)]
            |g, u| relu(g) * u,
        ),
        Activation::ReluSquared => run(
            inside,
            side,
            #[inline(always)]
            |g, u| relu(g) * relu(g) * u,
        ),
        Activation::ClampedSwish => run(inside, side, clamped),
    }
}

/// Replaces the inside by its gradients, from the gradient `dy` `[rows, width]` of the output.
pub(super) fn backward(mlp: MlpDesign, inside: &mut [f32], dy: &[f32], width: usize) {
    let side = [mlp.sides() * width, width];
    match mlp.activation {
        Activation::Silu => run_back(
            inside,
            dy,
            side,
            #[inline(always)]
            |g, u| {
                let s = sigmoid(g);
                (u * s * (1.0 + g * (1.0 - s)), g * s)
            },
        ),
        Activation::Gelu => run_back(
            inside,
            dy,
            side,
            #[inline(always)]
            |g, u| {
                let (y, slope) = gelu(g);
                (u * slope, y)
            },
        ),
        Activation::GeluTanh => run_back(
            inside,
            dy,
            side,
            #[inline(always)]
            |g, u| {
                let (y, slope) = gelu_tanh(g);
                (u * slope, y)
            },
        ),
        Activation::Relu => run_back(
            inside,
            dy,
            side,
            #[inline(always)]
            |g, u| (if g > 0.0 { u } else { 0.0 }, relu(g)),
        ),
        Activation::ReluSquared => {
            run_back(
                inside,
                dy,
                side,
                #[inline(always)]
                |g, u| (2.0 * relu(g) * u, relu(g) * relu(g)),
            );
        }
        Activation::ClampedSwish => run_back(inside, dy, side, clamped_back),
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x > 0.0 { x } else { 0.0 }
}

/// `x · Φ(x)` and its slope.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let below = normal(x);
    let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp(-0.5 * x * x);
    (x * below, below + x * density)
}

/// The same with `Φ` as `(1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const CUBIC: f32 = 0.044_715;
    const SCALE: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
    let t = tanh(SCALE * (x + CUBIC * x * x * x));
    let below = 0.5 * (1.0 + t);
    (x * below, below + 0.5 * x * (1.0 - t * t) * SCALE * (1.0 + 3.0 * CUBIC * x * x))
}

/// gpt-oss's bounds and slope.
const LIMIT: f32 = 7.0;
const SLOPE: f32 = 1.702;

#[inline(always)]
fn clamped(gate: f32, up: f32) -> f32 {
    let (g, u) = (lowest(gate), lowest(-lowest(-up)));
    (u + 1.0) * g * sigmoid(SLOPE * g)
}

#[inline(always)]
fn lowest(x: f32) -> f32 {
    if x > LIMIT { LIMIT } else { x }
}

#[inline(always)]
fn clamped_back(gate: f32, up: f32) -> (f32, f32) {
    let (g, u) = (lowest(gate), lowest(-lowest(-up)));
    let s = sigmoid(SLOPE * g);
    let d_gate = (u + 1.0) * s * (1.0 + SLOPE * g * (1.0 - s));
    let inside = |x: f32| x <= LIMIT;
    (if inside(gate) { d_gate } else { 0.0 }, if inside(up) && inside(-up) { g * s } else { 0.0 })
}

/// `f(gate, up)`, or `f(up, 1)` where there is no gate, for rows of `inside` values, `width` each.
#[allow(unsafe_code)]
#[inline(always)]
fn run(values: &[f32], [inside, width]: [usize; 2], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let rows = rows_of_task(inside);
    let forward_rows = |(y, values): (&mut [MaybeUninit<f32>], &[f32])| {
        vectorized(
            #[inline(always)]
            || {
                for (y, row) in y.chunks_exact_mut(width).zip(values.chunks_exact(inside)) {
                    forward_row(y, row.split_at(width), &f);
                }
            },
        );
    };
    assert!(values.len().is_multiple_of(inside), "rows of {inside} values");
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(rows * width).zip(values.par_chunks(rows * inside)).for_each(forward_rows);
    };
    // SAFETY: `y` has a row for each of `values`, and every value of it is written.
    unsafe { filled(values.len() / inside * width, fill) }
}

/// Replaces gate and up by `dy` times what `f` says of both, or up alone by `dy` times the first of that.
#[inline(always)]
fn run_back(values: &mut [f32], dy: &[f32], [inside, width]: [usize; 2], f: impl Fn(f32, f32) -> (f32, f32) + Sync) {
    let rows = rows_of_task(inside);
    let backward_rows = |(values, dy): (&mut [f32], &[f32])| {
        vectorized(
            #[inline(always)]
            || {
                for (row, dy) in values.chunks_exact_mut(inside).zip(dy.chunks_exact(width)) {
                    backward_row(row.split_at_mut(width), dy, &f);
                }
            },
        );
    };
    values.par_chunks_mut(rows * inside).zip(dy.par_chunks(rows * width)).for_each(backward_rows);
}

/// Takes whole registers first: a short row would spend its time in the scalar rest of an unrolled loop.
#[inline(always)]
fn forward_row(y: &mut [MaybeUninit<f32>], (gate, up): (&[f32], &[f32]), f: &impl Fn(f32, f32) -> f32) {
    let (ys, y_rest) = y.as_chunks_mut::<LANES>();
    let (gates, gate_rest) = gate.as_chunks::<LANES>();
    if up.is_empty() {
        for (y, gate) in ys.iter_mut().zip(gates) {
            y.iter_mut().zip(gate).for_each(|(y, &gate)| _ = y.write(f(gate, 1.0)));
        }
        return y_rest.iter_mut().zip(gate_rest).for_each(|(y, &gate)| _ = y.write(f(gate, 1.0)));
    }
    let activate = |((y, &gate), &up): ((&mut MaybeUninit<f32>, &f32), &f32)| {
        y.write(f(gate, up));
    };
    let (ups, up_rest) = up.as_chunks::<LANES>();
    for ((y, gate), up) in ys.iter_mut().zip(gates).zip(ups) {
        y.iter_mut().zip(gate).zip(up).for_each(activate);
    }
    y_rest.iter_mut().zip(gate_rest).zip(up_rest).for_each(activate);
}

#[inline(always)]
fn backward_row((gate, up): (&mut [f32], &mut [f32]), dy: &[f32], f: &impl Fn(f32, f32) -> (f32, f32)) {
    let (dys, dy_rest) = dy.as_chunks::<LANES>();
    let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
    if up.is_empty() {
        let alone = |(gate, &dy): (&mut f32, &f32)| *gate = dy * f(*gate, 1.0).0;
        for (gate, dy) in gates.iter_mut().zip(dys) {
            gate.iter_mut().zip(dy).for_each(alone);
        }
        return gate_rest.iter_mut().zip(dy_rest).for_each(alone);
    }
    let differentiate = |((gate, up), &dy): ((&mut f32, &mut f32), &f32)| {
        let (d_gate, d_up) = f(*gate, *up);
        (*gate, *up) = (dy * d_gate, dy * d_up);
    };
    let (ups, up_rest) = up.as_chunks_mut::<LANES>();
    for ((gate, up), dy) in gates.iter_mut().zip(ups).zip(dys) {
        gate.iter_mut().zip(up).zip(dy).for_each(differentiate);
    }
    gate_rest.iter_mut().zip(up_rest).zip(dy_rest).for_each(differentiate);
}
