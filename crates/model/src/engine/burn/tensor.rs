//! The one place that names burn's backend: aliases, and the crossings between host vectors and device tensors.

use std::ops::Range;

use burn::tensor::{DType, Int, TensorData};
use burn::{Dispatch, DispatchDevice};

use crate::engine::DeviceFailure;

/// A float tensor of rank `D` on whichever device was chosen at run time.
pub(crate) type Tensor<const D: usize> = burn::tensor::Tensor<Dispatch, D>;
/// A tensor of rank `D` and of kind `K`.
pub(crate) type Dispatched<const D: usize, K> = burn::tensor::Tensor<Dispatch, D, K>;
/// Row numbers on the device.
pub(crate) type Indices = burn::tensor::Tensor<Dispatch, 1, Int>;
/// Burn's name of a device.
pub(crate) type RawDevice = DispatchDevice;

/// Moves `values` (row-major, exactly as many as `shape` says) to the device, in f32.
pub(super) fn from_vec<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &RawDevice) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Moves whole numbers of 32 bits to the device, row-major.
pub(super) fn from_words<const D: usize>(words: Vec<i32>, shape: [usize; D], device: &RawDevice) -> Dispatched<D, Int> {
    Dispatched::from_data(TensorData::new(words, shape), (device, DType::I32))
}

/// Moves row numbers to the device.
pub(super) fn indices(rows: &[u32], device: &RawDevice) -> Indices {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Indices::from_data(TensorData::new(rows, [count]), (device, DType::I32))
}

/// Moves a tensor to the host, row-major. Free on the CPU if nobody shares the tensor.
pub(super) fn into_vec<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, DeviceFailure> {
    let data = tensor.try_into_data().map_err(|e| DeviceFailure(e.to_string()))?;
    data.into_vec::<f32>().map_err(|e| DeviceFailure(format!("{e:?}")))
}

pub(super) fn height(tensor: &Tensor<2>) -> usize {
    let [height, _] = tensor.dims();
    height
}

pub(super) fn width_of(matrix: &Tensor<2>) -> usize {
    let [_, width] = matrix.dims();
    width
}

/// Rows `range` of a matrix; a view where the backend has views.
pub(super) fn rows(tensor: &Tensor<2>, range: Range<usize>) -> Tensor<2> {
    tensor.clone().slice([range])
}

/// Columns `range` of a matrix; a view where the backend has views.
pub(super) fn columns(tensor: &Tensor<2>, range: Range<usize>) -> Tensor<2> {
    tensor.clone().slice([0..height(tensor), range])
}

/// One above the other; a single one as it is.
pub(super) fn stack(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}
