//! A frozen projection `y = x·W + b` in burn's operations.

use burn::tensor::{DType, Element, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use super::Burn;
use super::packed::Packed;
use super::tensor::{Tensor, from_vec};
use crate::checkpoint::blocks::{Bits, WeightColumns};
use crate::device::Dtype;

/// Input features that one task transposes at a time: as many write streams as caches follow well.
const TILE: usize = 64;

/// A weight `[input, output]` in the dtype it is served in, and its bias `[1, output]` in f32.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor<2>>,
}

#[derive(Debug)]
enum Weight {
    /// Multiplied as it is.
    Float(Tensor<2>),
    /// Of half precision, widened to f32 for each product.
    Widened(Tensor<2>),
    /// Of eight or four bits, widened to f32 for each product.
    Packed(Box<Packed>),
}

impl Linear {
    /// See [`crate::engine::Engine::load_linear`].
    pub(super) fn new(
        engine: &Burn,
        shape @ [_, output]: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: &impl WeightColumns,
    ) -> Self {
        let weight = match dtype {
            Dtype::Auto | Dtype::F32 => Weight::Float(upload(shape, columns, |v| v, DType::F32, engine)),
            Dtype::Bf16 => Weight::Widened(upload(shape, columns, bf16::from_f32, DType::BF16, engine)),
            Dtype::F16 => Weight::Widened(upload(shape, columns, f16::from_f32, DType::F16, engine)),
            Dtype::Int8 => Weight::Packed(Box::new(Packed::new(engine, shape, Bits::Eight, columns))),
            Dtype::Int4 => Weight::Packed(Box::new(Packed::new(engine, shape, Bits::Offset, columns))),
        };
        let bias = bias.map(|values| from_vec(values, [1, output], &engine.raw));
        Self { weight, bias }
    }

    /// `x` `[rows, input]` to `[rows, output]`, both f32.
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = self.product(x, |weight| weight);
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }

    /// `dx = dy·Wᵀ`: `[rows, output]` to `[rows, input]`, both f32.
    pub(super) fn backward(&self, dy: Tensor<2>) -> Tensor<2> {
        self.product(dy, Tensor::transpose)
    }

    fn product(&self, x: Tensor<2>, side: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        match &self.weight {
            Weight::Float(weight) => x.matmul(side(weight.clone())),
            Weight::Widened(weight) => x.matmul(side(weight.clone().cast(DType::F32))),
            Weight::Packed(weight) => x.matmul(side(weight.widen())),
        }
    }
}

/// A weight `[input, output]` in device memory.
fn upload<E: Element + Copy + Default + Send>(
    [input, output]: [usize; 2],
    from: &impl WeightColumns,
    convert: impl Fn(f32) -> E + Sync,
    dtype: DType,
    engine: &Burn,
) -> Tensor<2> {
    let mut columns = vec![E::default(); input * output];
    columns.par_chunks_mut(input).enumerate().for_each_init(
        || vec![0.0; input],
        |values, (n, to)| {
            from.column(n, values);
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
    Tensor::from_data(TensorData::new(weight, [input, output]), (&engine.raw, dtype))
}
