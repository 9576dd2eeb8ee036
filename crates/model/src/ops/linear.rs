//! A frozen projection `y = x·W + b`.

use burn::tensor::DType;

use crate::device::Device;
use crate::tensor::{Tensor, from_vec};

/// A weight kept as `[input, output]`, in the dtype it is stored in, and its bias in f32.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<2>>,
    /// Whether products run in f32 although the weight is stored in less.
    widen: bool,
}

impl Linear {
    pub(crate) fn new(weight: Tensor<2>, bias: Option<Vec<f32>>, device: &Device) -> Self {
        let [_, output] = weight.dims();
        let bias = bias.map(|values| from_vec(values, [1, output], device.raw()));
        // The CPU backend has no products in bf16 or f16 that are both right and fast.
        let widen = device.is_cpu() && weight.dtype() != DType::F32;
        Self { weight, bias, widen }
    }

    /// `[rows, input]` to `[rows, output]`, both f32.
    pub(crate) fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        let y = self.product(x, |weight| weight);
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }

    /// `dx = dy·Wᵀ`: `[rows, output]` to `[rows, input]`, both f32.
    pub(crate) fn backward(&self, dy: &Tensor<2>) -> Tensor<2> {
        self.product(dy, Tensor::transpose)
    }

    fn product(&self, x: &Tensor<2>, side: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let weight = self.weight.clone();
        let dtype = weight.dtype();
        if dtype == DType::F32 {
            x.clone().matmul(side(weight))
        } else if self.widen {
            x.clone().matmul(side(weight.cast(DType::F32)))
        } else {
            x.clone().cast(dtype).matmul(side(weight)).cast(DType::F32)
        }
    }
}
