//! The gated activation of the MLP: `silu(gate) ∘ up` (Shazeer 2020).

use burn::tensor::activation::sigmoid;

use crate::kernels;
use crate::tensor::{DeviceFailure, Tensor, columns, from_vec, into_vec, read};

/// Gate and up side by side `[rows, 2·width]` to `[rows, width]`.
pub(crate) fn forward(gate_up: &mut Tensor<2>, use_kernels: bool) -> Result<Tensor<2>, DeviceFailure> {
    let [rows, both] = gate_up.dims();
    let width = both / 2;
    if !use_kernels {
        let (gate, up) = (columns(gate_up, 0..width), columns(gate_up, width..both));
        return Ok(gate.clone() * sigmoid(gate) * up);
    }
    let device = gate_up.device();
    let y = read(gate_up, |gate_up| kernels::swiglu::forward(gate_up, width))?;
    Ok(from_vec(y, [rows, width], &device))
}

/// The gradients of gate and up side by side, `[rows, 2·width]`, from both and the gradient `dy` `[rows, width]`.
///
/// With `s = sigmoid(gate)`: `d_up = dy · gate · s`, `d_gate = dy · up · s · (1 + gate · (1 - s))`.
pub(crate) fn backward(gate_up: Tensor<2>, mut dy: Tensor<2>, use_kernels: bool) -> Result<Tensor<2>, DeviceFailure> {
    let [rows, both] = gate_up.dims();
    let width = both / 2;
    if !use_kernels {
        let (gate, up) = (columns(&gate_up, 0..width), columns(&gate_up, width..both));
        let s = sigmoid(gate.clone());
        let d_up = dy.clone() * gate.clone() * s.clone();
        let d_gate = dy * up * s.clone() * (gate * (s.neg() + 1.0) + 1.0);
        return Ok(Tensor::cat(vec![d_gate, d_up], 1));
    }
    let device = gate_up.device();
    let mut values = into_vec(gate_up)?;
    read(&mut dy, |dy| kernels::swiglu::backward(&mut values, dy, width))?;
    Ok(from_vec(values, [rows, both], &device))
}
