//! A frozen projection `y = x·W + b`.

use rayon::prelude::*;

use super::matmul::FrozenMatrix;
use super::rows::{HostRows, add};
use crate::device::Dtype;

/// A weight `[input, output]` in the dtype it is served in, laid out for the kernels, and its bias in f32.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: FrozenMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// See [`crate::engine::Engine::load_linear`].
    pub(super) fn new(
        shape @ [_, output]: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        column: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        debug_assert!(bias.as_ref().is_none_or(|bias| bias.len() == output), "a bias for {output}");
        Self { weight: FrozenMatrix::from_columns(shape, dtype, column), bias }
    }

    /// `x` `[rows, input]` projected.
    pub(super) fn forward(&self, x: &[f32]) -> HostRows {
        let [input, output] = self.weight.shape();
        let y = match &self.bias {
            None => self.weight.forward(x),
            Some(bias) => {
                let mut y = bias.repeat(x.len() / input);
                self.weight.forward_onto(x, &mut y);
                y
            }
        };
        HostRows::new(y, output)
    }

    /// Adds the projection of `x` `[rows, input]` to `sum` `[rows, output]`.
    pub(super) fn forward_onto(&self, x: &[f32], sum: &mut [f32]) {
        if let Some(bias) = &self.bias {
            sum.par_chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
        }
        self.weight.forward_onto(x, sum);
    }

    /// `dx = dy·Wᵀ`: `[rows, output]` to `[rows, input]`.
    pub(super) fn backward(&self, dy: &[f32]) -> HostRows {
        let [input, _] = self.weight.shape();
        HostRows::new(self.weight.backward(dy), input)
    }

    /// Adds `dy·Wᵀ` to `sum` `[rows, input]`.
    pub(super) fn backward_onto(&self, dy: &[f32], sum: &mut [f32]) {
        self.weight.backward_onto(dy, sum);
    }
}
