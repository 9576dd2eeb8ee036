//! A frozen projection `y = x·W + b`.

use rayon::prelude::*;

use super::in_place::InPlace;
use super::matmul::FrozenMatrix;
use super::rows::{HostRows, add};
use crate::checkpoint::blocks::WeightColumns;
use crate::device::Dtype;

/// A weight `[input, output]`, and its bias in f32.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Weight {
    /// In the dtype it is served in, laid out for the kernels.
    Kept(FrozenMatrix),
    /// Read when it is needed.
    InPlace(InPlace),
}

impl Linear {
    /// See [`crate::engine::Engine::load_linear`].
    pub(super) fn new(
        shape @ [_, output]: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: &impl WeightColumns,
    ) -> Self {
        debug_assert!(bias.as_ref().is_none_or(|bias| bias.len() == output), "a bias for {output}");
        Self { weight: Weight::Kept(FrozenMatrix::from_columns(shape, dtype, columns)), bias }
    }

    /// See [`crate::engine::Engine::load_linear_in_place`].
    pub(super) fn in_place(
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        column: impl Fn(usize, &mut [f32]) + Send + Sync + 'static,
    ) -> Self {
        Self { weight: Weight::InPlace(InPlace::new(shape, column)), bias }
    }

    fn shape(&self) -> [usize; 2] {
        match &self.weight {
            Weight::Kept(weight) => weight.shape(),
            Weight::InPlace(weight) => weight.shape(),
        }
    }

    /// `x` `[rows, input]` projected.
    pub(super) fn forward(&self, x: &[f32]) -> HostRows {
        let [input, output] = self.shape();
        let y = match (&self.bias, &self.weight) {
            (None, Weight::Kept(weight)) => weight.forward(x),
            (bias, weight) => {
                let rows = x.len() / input;
                let mut y = bias.as_ref().map_or_else(|| vec![0.0; rows * output], |bias| bias.repeat(rows));
                weight.forward_onto(x, &mut y);
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
        let [input, output] = self.shape();
        let dx = match &self.weight {
            Weight::Kept(weight) => weight.backward(dy),
            Weight::InPlace(weight) => {
                let mut dx = vec![0.0; dy.len() / output * input];
                weight.backward_onto(dy, &mut dx);
                dx
            }
        };
        HostRows::new(dx, input)
    }

    /// Adds `dy·Wᵀ` to `sum` `[rows, input]`.
    pub(super) fn backward_onto(&self, dy: &[f32], sum: &mut [f32]) {
        match &self.weight {
            Weight::Kept(weight) => weight.backward_onto(dy, sum),
            Weight::InPlace(weight) => weight.backward_onto(dy, sum),
        }
    }
}

impl Weight {
    fn forward_onto(&self, x: &[f32], sum: &mut [f32]) {
        match self {
            Self::Kept(weight) => weight.forward_onto(x, sum),
            Self::InPlace(weight) => weight.forward_onto(x, sum),
        }
    }
}
