//! Activations of MLPs and their slopes.

use cubecl::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::launch;

const UNITS: usize = 256;

/// Which function an activation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)` by the error function.
    Gelu,
    /// `x · Φ(x)` by the hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    ReluSquared,
    /// `x · sigmoid(1.702 x)` of a gate of at most 7; what it multiplies is within ±7, and one more (gpt-oss).
    ClampedSwish,
}

/// How far from zero [`Activation::ClampedSwish`] lets gate and up be.
const LIMIT: f32 = 7.0;

/// `act(x)`.
#[cube]
fn value(x: f32, #[comptime] activation: Activation) -> f32 {
    if comptime!(activation == Activation::Silu) {
        x * sigmoid(x)
    } else if comptime!(activation == Activation::Gelu) {
        x * below(x)
    } else if comptime!(activation == Activation::GeluTanh) {
        x * sigmoid(cubic(x))
    } else if comptime!(activation == Activation::Relu) {
        max(x, f32::new(0.0))
    } else if comptime!(activation == Activation::ReluSquared) {
        let positive = max(x, f32::new(0.0));
        positive * positive
    } else {
        x * sigmoid(x * 1.702)
    }
}

/// `act'(x)`. That of `x · sigmoid(v(x))` is `s · (1 + x · v'(x) · (1 - s))`.
#[cube]
fn slope(x: f32, #[comptime] activation: Activation) -> f32 {
    if comptime!(activation == Activation::Silu) {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    } else if comptime!(activation == Activation::Gelu) {
        below(x) + x * f32::exp(x * x * -0.5) * 0.398_942_3
    } else if comptime!(activation == Activation::GeluTanh) {
        let s = sigmoid(cubic(x));
        let steepness = (1.0 + x * x * comptime!(3.0 * CUBIC)) * TWICE_ROOT;
        s * (1.0 + x * steepness * (1.0 - s))
    } else if comptime!(activation == Activation::Relu) {
        select(x > 0.0, f32::new(1.0), f32::new(0.0))
    } else if comptime!(activation == Activation::ReluSquared) {
        2.0 * max(x, f32::new(0.0))
    } else {
        let s = sigmoid(x * 1.702);
        s * (1.0 + x * 1.702 * (1.0 - s))
    }
}

/// `Φ`'s cubic factor in [`Activation::GeluTanh`], and `2 √(2/π)`.
const CUBIC: f32 = 0.044_715;
const TWICE_ROOT: f32 = 1.595_769;

/// `2 √(2/π) (x + 0.044715 x³)`, whose sigmoid is `(1 + tanh) / 2` of the half of it.
#[cube]
fn cubic(x: f32) -> f32 {
    x * (1.0 + x * x * CUBIC) * TWICE_ROOT
}

/// Right for what a cubic may grow to: a large exponential makes it zero.
#[cube]
fn sigmoid(x: f32) -> f32 {
    f32::new(1.0) / (1.0 + f32::exp(-x))
}

/// `Φ(x)`, the normal distribution's.
#[cube]
fn below(x: f32) -> f32 {
    (Erf::erf(x * 0.707_106_77) + 1.0) * 0.5
}

#[cube]
fn clamped(x: f32) -> f32 {
    max(min(x, f32::new(LIMIT)), f32::new(-LIMIT))
}

/// `act(gate) · up`.
#[cube]
pub(crate) fn gated(gate: f32, up: f32, #[comptime] activation: Activation) -> f32 {
    if comptime!(activation == Activation::ClampedSwish) {
        value(min(gate, f32::new(LIMIT)), activation) * (clamped(up) + 1.0)
    } else {
        value(gate, activation) * up
    }
}

/// The inside of an MLP behind its activation, `[rows, width]`, in `out`: of gate and up side by side, `[rows, 2·width]`, or of up alone.
pub fn activate<R: Runtime>(
    gpu: &Gpu<R>,
    (activation, is_gated): (Activation, bool),
    inside: &Buffer,
    out: &Buffer,
    width: usize,
) {
    if out.is_empty() {
        return;
    }
    let (cubes, len) = (gpu.cubes(out.len().div_ceil(UNITS)), out.len() as u32);
    launch!(gpu, cubes, UNITS, activate_kernel, gpu.arg(inside), gpu.arg(out), width as u32, len, activation, is_gated);
}

#[cube(launch_unchecked)]
fn activate_kernel(
    inside: &Array<f32>,
    out: &mut Array<f32>,
    width: u32,
    len: u32,
    #[comptime] activation: Activation,
    #[comptime] is_gated: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        if comptime!(is_gated) {
            let width = width as usize;
            let gate = at / width * width + at;
            out[at] = gated(inside[gate], inside[gate + width], activation);
        } else {
            out[at] = value(inside[at], activation);
        }
    }
}

/// The gradients of what [`activate`] was given, in its shape and in its place, from those of the result. What is beyond a limit of
/// [`Activation::ClampedSwish`] gets none; what is at it does, as in torch.
pub fn activate_back<R: Runtime>(
    gpu: &Gpu<R>,
    (activation, is_gated): (Activation, bool),
    dy: &Buffer,
    inside: &Buffer,
    width: usize,
) {
    if dy.is_empty() {
        return;
    }
    let (cubes, len) = (gpu.cubes(dy.len().div_ceil(UNITS)), dy.len() as u32);
    launch!(
        gpu,
        cubes,
        UNITS,
        activate_back_kernel,
        gpu.arg(dy),
        gpu.arg(inside),
        width as u32,
        len,
        activation,
        is_gated
    );
}

#[cube(launch_unchecked)]
fn activate_back_kernel(
    dy: &Array<f32>,
    inside: &mut Array<f32>,
    width: u32,
    len: u32,
    #[comptime] activation: Activation,
    #[comptime] is_gated: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        let dy = dy[at];
        if comptime!(!is_gated) {
            inside[at] = slope(inside[at], activation) * dy;
        } else {
            let width = width as usize;
            let of_gate = at / width * width + at;
            let (gate, up) = (inside[of_gate], inside[of_gate + width]);
            if comptime!(activation == Activation::ClampedSwish) {
                let within = min(gate, f32::new(LIMIT));
                let d_gate = slope(within, activation) * (clamped(up) + 1.0) * dy;
                let d_up = value(within, activation) * dy;
                inside[of_gate] = select(gate > LIMIT, f32::new(0.0), d_gate);
                inside[of_gate + width] = select(f32::abs(up) > LIMIT, f32::new(0.0), d_up);
            } else {
                inside[of_gate] = slope(gate, activation) * up * dy;
                inside[of_gate + width] = value(gate, activation) * dy;
            }
        }
    }
}
