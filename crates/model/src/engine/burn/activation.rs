//! Activations of MLPs and their slopes in burn's operations, value by value; gate, up and gradients are `[rows, width]` each.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::tensor::activation::{relu, sigmoid};

use super::tensor::{Tensor, columns, width_of};
use crate::config::{Activation, MlpDesign};

/// How far from zero [`Activation::ClampedSwish`] lets gate and up be.
const LIMIT: f32 = 7.0;
/// What its sigmoid multiplies the gate by.
const STEEPNESS: f32 = 1.702;
/// The cubic's factor in [`Activation::GeluTanh`].
const CUBIC: f32 = 0.044_715;

/// See [`crate::engine::Engine::activate`].
pub(super) fn forward(mlp: MlpDesign, inside: &Tensor<2>) -> Tensor<2> {
    if !mlp.gated {
        return value(mlp.activation, inside.clone());
    }
    let (gate, up) = gate_and_up(inside);
    let (gate, up) = if mlp.activation == Activation::ClampedSwish { within_limits(gate, up) } else { (gate, up) };
    value(mlp.activation, gate) * up
}

/// See [`crate::engine::Engine::activate_back`].
pub(super) fn backward(mlp: MlpDesign, inside: Tensor<2>, dy: &Tensor<2>) -> Tensor<2> {
    if !mlp.gated {
        return slope(mlp.activation, inside) * dy.clone();
    }
    let (gate, up) = gate_and_up(&inside);
    // Where columns are copies, what they were copied from is given back.
    drop(inside);
    if mlp.activation == Activation::ClampedSwish {
        return clamped_back(gate, up, dy);
    }
    let d_up = value(mlp.activation, gate.clone()) * dy.clone();
    let d_gate = slope(mlp.activation, gate) * up * dy.clone();
    Tensor::cat(vec![d_gate, d_up], 1)
}

/// The backward of [`Activation::ClampedSwish`]. What is beyond a limit gets no gradient; what is at it does, as in torch.
fn clamped_back(gate: Tensor<2>, up: Tensor<2>, dy: &Tensor<2>) -> Tensor<2> {
    let (gate_beyond, up_beyond) = (gate.clone().greater_elem(LIMIT), up.clone().abs().greater_elem(LIMIT));
    let (gate, up) = within_limits(gate, up);
    let d_up = (value(Activation::ClampedSwish, gate.clone()) * dy.clone()).mask_fill(up_beyond, 0.0);
    let d_gate = (slope(Activation::ClampedSwish, gate) * up * dy.clone()).mask_fill(gate_beyond, 0.0);
    Tensor::cat(vec![d_gate, d_up], 1)
}

/// The halves of `[rows, 2·width]`.
fn gate_and_up(inside: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let width = width_of(inside) / 2;
    (columns(inside, 0..width), columns(inside, width..2 * width))
}

/// The gate of [`Activation::ClampedSwish`] as it is activated, and what that is multiplied by.
fn within_limits(gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    (gate.clamp_max(LIMIT), up.clamp(-LIMIT, LIMIT) + 1.0)
}

/// `act(x)`; of [`Activation::ClampedSwish`] what it does with a gate within limits.
fn value(activation: Activation, x: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Silu => sigmoid(x.clone()) * x,
        Activation::Gelu => below(x.clone()) * x,
        Activation::GeluTanh => sigmoid(cubic(x.clone())) * x,
        Activation::Relu => relu(x),
        Activation::ReluSquared => relu(x).square(),
        Activation::ClampedSwish => sigmoid(x.clone() * STEEPNESS) * x,
    }
}

/// `act'(x)`.
fn slope(activation: Activation, x: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Silu => swish_slope(sigmoid(x.clone()), x),
        Activation::Gelu => density(x.clone()) * x.clone() + below(x),
        Activation::GeluTanh => swish_slope(sigmoid(cubic(x.clone())), cubic_slope(x.clone()) * x),
        Activation::Relu => relu(x.sign()),
        Activation::ReluSquared => relu(x) * 2.0,
        Activation::ClampedSwish => swish_slope(sigmoid(x.clone() * STEEPNESS), x * STEEPNESS),
    }
}

/// The slope of `x · sigmoid(v(x))`, `s · (1 + x · v'(x) · (1 - s))`, of `s = sigmoid(v(x))` and `x · v'(x)`.
fn swish_slope(s: Tensor<2>, steepness: Tensor<2>) -> Tensor<2> {
    ((s.clone().neg() + 1.0) * steepness + 1.0) * s
}

/// `Φ(x)`, the normal distribution's.
fn below(x: Tensor<2>) -> Tensor<2> {
    ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

/// `φ(x) = Φ'(x)`.
fn density(x: Tensor<2>) -> Tensor<2> {
    (x.square() * -0.5).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
}

/// `2 √(2/π) (x + 0.044715 x³)`, whose sigmoid is [`Activation::GeluTanh`]'s `Φ`: `(1 + tanh(z)) / 2 = sigmoid(2z)`. A sigmoid is right for
/// whatever the cubic grows to, a tanh not on every device.
fn cubic(x: Tensor<2>) -> Tensor<2> {
    (x.clone().square() * CUBIC + 1.0) * x * (2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
}

/// The cubic's slope.
fn cubic_slope(x: Tensor<2>) -> Tensor<2> {
    (x.square() * (3.0 * CUBIC) + 1.0) * (2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
}
