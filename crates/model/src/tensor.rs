//! The one place that names burn's backend: aliases, and the crossings between host vectors and device tensors.

use std::ops::Range;

use burn::tensor::{DType, Int, TensorData};
use burn::{Dispatch, DispatchDevice};

/// A float tensor of rank `D` on whichever device was chosen at run time.
pub(crate) type Tensor<const D: usize> = burn::tensor::Tensor<Dispatch, D>;
/// Row numbers on the device.
pub(crate) type Indices = burn::tensor::Tensor<Dispatch, 1, Int>;
/// Burn's name of a device.
pub(crate) type RawDevice = DispatchDevice;

/// The device failed to compute or to hand over a result.
#[derive(Debug, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct DeviceFailure(String);

/// Moves `values` (row-major, exactly as many as `shape` says) to the device, in f32.
pub(crate) fn from_vec<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &RawDevice) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Moves row numbers to the device.
pub(crate) fn indices(rows: &[u32], device: &RawDevice) -> Indices {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Indices::from_data(TensorData::new(rows, [count]), (device, DType::I32))
}

/// Moves a tensor to the host, row-major. Free on the CPU if nobody shares the tensor.
pub(crate) fn into_vec<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, DeviceFailure> {
    let data = tensor.try_into_data().map_err(|e| DeviceFailure(e.to_string()))?;
    data.into_vec::<f32>().map_err(|e| DeviceFailure(format!("{e:?}")))
}

/// Rows `range` of a matrix; a view where the backend has views.
pub(crate) fn rows(tensor: &Tensor<2>, range: Range<usize>) -> Tensor<2> {
    tensor.clone().slice([range])
}

/// Columns `range` of a matrix; a view where the backend has views.
pub(crate) fn columns(tensor: &Tensor<2>, range: Range<usize>) -> Tensor<2> {
    let [height, _] = tensor.dims();
    tensor.clone().slice([0..height, range])
}

/// Bytes that an f32 tensor occupies.
pub(crate) fn bytes<const D: usize>(tensor: &Tensor<D>) -> u64 {
    tensor.dims().iter().fold(4, |product, &n| product * n as u64)
}

/// Lends a tensor's values, row-major, to a kernel. Free on the CPU if nobody shares the tensor.
pub(crate) fn read<const D: usize, R>(
    tensor: &mut Tensor<D>,
    kernel: impl FnOnce(&[f32]) -> R,
) -> Result<R, DeviceFailure> {
    let device = tensor.device();
    let data = std::mem::replace(tensor, Tensor::empty([0; D], &device)).try_into_data();
    let data = data.map_err(|e| DeviceFailure(e.to_string()))?;
    let result = kernel(data.as_slice::<f32>().map_err(|e| DeviceFailure(format!("{e:?}")))?);
    *tensor = Tensor::from_data(data, (&device, DType::F32));
    Ok(result)
}
