//! Root-mean-square norm (Zhang and Sennrich 2019), as Llama uses it.

use crate::device::Device;
use crate::kernels;
use crate::tensor::{DeviceFailure, Tensor, from_vec, into_vec, read};

/// `y = w ∘ x / r` with `r = sqrt(mean(x²) + eps)`, row by row. Statistics in f32.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Vec<f32>,
    on_device: Tensor<2>,
    eps: f32,
    kernels: bool,
}

impl RmsNorm {
    pub(crate) fn new(weight: Vec<f32>, eps: f32, device: &Device) -> Self {
        let on_device = from_vec(weight.clone(), [1, weight.len()], device.raw());
        Self { weight, on_device, eps, kernels: device.has_kernels() }
    }

    /// `[rows, width]` to the same.
    pub(crate) fn forward(&self, x: &mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure> {
        if !self.kernels {
            return Ok(x.clone() * self.inverse_rms(x) * self.on_device.clone());
        }
        let (shape, device) = (x.dims(), x.device());
        let y = read(x, |x| kernels::rms_norm::forward(x, &self.weight, self.eps))?;
        Ok(from_vec(y, shape, &device))
    }

    /// The gradient of `x`, from `x` and the gradient `dy` of the output, both `[rows, width]`.
    ///
    /// With `g = w ∘ dy`: `dx = g / r - x · mean(g ∘ x) / r³`.
    pub(crate) fn backward(&self, x: &mut Tensor<2>, dy: Tensor<2>) -> Result<Tensor<2>, DeviceFailure> {
        if !self.kernels {
            let inverse = self.inverse_rms(x);
            let g = dy * self.on_device.clone();
            let along = (g.clone() * x.clone()).mean_dim(1) * inverse.clone().powi_scalar(3);
            return Ok(g * inverse - x.clone() * along);
        }
        let (shape, device) = (x.dims(), x.device());
        let mut gradient = into_vec(dy)?;
        read(x, |x| kernels::rms_norm::backward(x, &self.weight, self.eps, &mut gradient))?;
        Ok(from_vec(gradient, shape, &device))
    }

    fn inverse_rms(&self, x: &Tensor<2>) -> Tensor<2> {
        ((x.clone() * x.clone()).mean_dim(1) + self.eps).sqrt().recip()
    }
}
