//! Norms in burn's operations, row by row. See [`crate::engine::Engine::normalise`] and its backward for the mathematics.

use super::tensor::{RawDevice, Tensor, from_vec, width_of};
use crate::engine::NormWeights;

/// Weight and bias are `[1, width]`.
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor<2>,
    bias: Option<Tensor<2>>,
    centred: bool,
    eps: f32,
}

impl Norm {
    pub(super) fn new(NormWeights { weight, bias, centred, eps }: NormWeights, device: &RawDevice) -> Self {
        let upload = |values: Vec<f32>| {
            let width = values.len();
            from_vec(values, [1, width], device)
        };
        Self { weight: upload(weight), bias: bias.map(upload), centred, eps }
    }

    /// Width of the rows that it norms.
    pub(super) fn width(&self) -> usize {
        width_of(&self.weight)
    }

    /// The normed rows of `x`, `[rows, width]`.
    pub(super) fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        let x = self.centre(x);
        let inverse = self.inverse_root(&x);
        let y = x * inverse * self.weight.clone();
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }

    /// The gradient of `x` from that of its normed rows, `[rows, width]` all three.
    pub(super) fn backward(&self, x: &Tensor<2>, dy: Tensor<2>) -> Tensor<2> {
        let x = self.centre(x);
        let inverse = self.inverse_root(&x);
        let g = dy * self.weight.clone();
        let along = (g.clone() * x.clone()).mean_dim(1) * inverse.clone().powi_scalar(3);
        let dx = g * inverse - x * along;
        if self.centred { without_mean(dx) } else { dx }
    }

    /// What is divided by its root mean square.
    fn centre(&self, x: &Tensor<2>) -> Tensor<2> {
        if self.centred { without_mean(x.clone()) } else { x.clone() }
    }

    /// `1 / r`, `[rows, 1]`.
    fn inverse_root(&self, x: &Tensor<2>) -> Tensor<2> {
        ((x.clone() * x.clone()).mean_dim(1) + self.eps).sqrt().recip()
    }
}

fn without_mean(x: Tensor<2>) -> Tensor<2> {
    let mean = x.clone().mean_dim(1);
    x - mean
}
