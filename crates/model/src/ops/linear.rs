//! A frozen projection `y = x·W + b`.

use burn::tensor::Element;
use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::{Device, Dtype};
use crate::kernels::matmul::FrozenMatrix;
use crate::tensor::{DeviceFailure, Tensor, from_vec, into_vec, read, rows};

/// Input features that one task transposes at a time: as many write streams as caches follow well.
const TILE: usize = 64;

/// A weight `[input, output]` in the dtype it is served in, and its bias in f32.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Bias>,
}

#[derive(Debug)]
enum Weight {
    /// On the CPU, laid out for this crate's kernels.
    Frozen(FrozenMatrix),
    /// On a device with burn's products.
    Device { weight: Tensor<2>, widen: bool },
}

#[derive(Debug)]
struct Bias {
    values: Vec<f32>,
    on_device: Tensor<2>,
}

impl Linear {
    /// A projection whose column `n` of the weight is written by `column(n, out)`, as [`FrozenMatrix::from_columns`] has it.
    pub(crate) fn new(
        shape @ [input, output]: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        device: &Device,
        column: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let weight = if device.has_kernels() {
            Weight::Frozen(FrozenMatrix::from_columns(shape, dtype, column))
        } else {
            let weight = match dtype.raw() {
                DType::BF16 => upload(shape, &column, bf16::from_f32, dtype, device),
                DType::F16 => upload(shape, &column, f16::from_f32, dtype, device),
                _ => upload(shape, &column, |v| v, dtype, device),
            };
            // burn's CPU backend has no products in bf16 or f16 that are both right and fast.
            Weight::Device { weight, widen: device.is_cpu() && dtype != Dtype::F32 }
        };
        debug_assert!(bias.as_ref().is_none_or(|bias| bias.len() == output), "a bias for {output} of {input}");
        let bias = bias.map(|values| Bias { on_device: from_vec(values.clone(), [1, output], device.raw()), values });
        Self { weight, bias }
    }

    /// The rows of `x` `[rows, input]` from `first` on, projected to `[rows - first, output]`; all in f32.
    pub(crate) fn forward(&self, x: &mut Tensor<2>, first: usize) -> Result<Tensor<2>, DeviceFailure> {
        let [height, _] = x.dims();
        let Weight::Frozen(weight) = &self.weight else {
            let y = self.on_device(rows(x, first..height), |weight| weight);
            return Ok(self.bias.as_ref().map_or(y.clone(), |bias| y + bias.on_device.clone()));
        };
        let ([input, output], device) = (weight.shape(), x.device());
        let count = height - first;
        let y = match &self.bias {
            None => read(x, |x| weight.forward(&x[first * input..]))?,
            Some(bias) => {
                let mut y = bias.values.repeat(count);
                read(x, |x| weight.forward_onto(&x[first * input..], &mut y))?;
                y
            }
        };
        Ok(from_vec(y, [count, output], &device))
    }

    /// `sum + y`, where `y` `[rows, output]` is the projection of `x` `[rows, input]`.
    pub(crate) fn forward_onto(&self, x: &mut Tensor<2>, sum: Tensor<2>) -> Result<Tensor<2>, DeviceFailure> {
        let Weight::Frozen(weight) = &self.weight else { return Ok(self.forward(x, 0)? + sum) };
        let (shape, device) = (sum.dims(), sum.device());
        let mut y = into_vec(sum)?;
        if let Some(bias) = &self.bias {
            let add = |row: &mut [f32]| row.iter_mut().zip(&bias.values).for_each(|(y, b)| *y += b);
            y.par_chunks_exact_mut(shape[1]).for_each(add);
        }
        read(x, |x| weight.forward_onto(x, &mut y))?;
        Ok(from_vec(y, shape, &device))
    }

    /// `dx = dy·Wᵀ`: `[rows, output]` to `[rows, input]`, both f32.
    pub(crate) fn backward(&self, dy: &mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure> {
        let Weight::Frozen(weight) = &self.weight else { return Ok(self.on_device(dy.clone(), Tensor::transpose)) };
        let ([input, _], [count, _], device) = (weight.shape(), dy.dims(), dy.device());
        let dx = read(dy, |dy| weight.backward(dy))?;
        Ok(from_vec(dx, [count, input], &device))
    }

    /// `sum + dx`, where the rows of `dx` belong to those of `sum` from `first` on.
    pub(crate) fn backward_onto(
        &self,
        dy: &mut Tensor<2>,
        sum: Tensor<2>,
        first: usize,
    ) -> Result<Tensor<2>, DeviceFailure> {
        let shape @ [height, width] = sum.dims();
        let Weight::Frozen(weight) = &self.weight else {
            let part = rows(&sum, first..height) + self.backward(dy)?;
            return Ok(if first == 0 { part } else { sum.slice_assign([first..height, 0..width], part) });
        };
        let device = sum.device();
        let mut dx = into_vec(sum)?;
        read(dy, |dy| weight.backward_onto(dy, &mut dx[first * width..]))?;
        Ok(from_vec(dx, shape, &device))
    }

    fn on_device(&self, x: Tensor<2>, side: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let Weight::Device { weight, widen } = &self.weight else { unreachable!("only called for devices") };
        let dtype = weight.dtype();
        if dtype == DType::F32 {
            x.matmul(side(weight.clone()))
        } else if *widen {
            x.matmul(side(weight.clone().cast(DType::F32)))
        } else {
            x.cast(dtype).matmul(side(weight.clone())).cast(DType::F32)
        }
    }
}

/// A weight `[input, output]` in device memory.
fn upload<E: Element + Copy + Default + Send>(
    [input, output]: [usize; 2],
    column: &(impl Fn(usize, &mut [f32]) + Sync),
    convert: impl Fn(f32) -> E + Sync,
    dtype: Dtype,
    device: &Device,
) -> Tensor<2> {
    let mut columns = vec![E::default(); input * output];
    columns.par_chunks_mut(input).enumerate().for_each_init(
        || vec![0.0; input],
        |values, (n, to)| {
            column(n, values);
            to.iter_mut().zip(values).for_each(|(to, value)| *to = convert(*value));
        },
    );
    // A product reads a weight that lies as `[input, output]` faster than a transposed view of the other order.
    let mut weight = vec![E::default(); input * output];
    weight.par_chunks_mut(TILE * output).enumerate().for_each(|(tile, rows)| {
        for (n, column) in columns.chunks_exact(input).enumerate() {
            let values = &column[tile * TILE..];
            rows.chunks_exact_mut(output).zip(values).for_each(|(row, &value)| row[n] = value);
        }
    });
    Tensor::from_data(TensorData::new(weight, [input, output]), (device.raw(), dtype.raw()))
}
