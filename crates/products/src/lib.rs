//! Large products on tensor cores, by burn's kernels, which are chosen by trying them out on the device.
//!
//! They take minutes to compile, so they are in a crate that is seldom touched, behind one function that is compiled for one runtime.

#![cfg(any(feature = "cuda", all(test, feature = "vulkan")))]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::server::Handle;

/// The runtime of NVIDIA's GPUs, whose products these are.
#[cfg(feature = "cuda")]
pub type CudaRuntime = cubecl::cuda::CudaRuntime;

/// `out = x·Wᵀ` or, `back`, `out = x·W`.
#[derive(Debug)]
pub struct Product {
    /// Rows of `x`, `[rows, depth]`, in bf16.
    pub x: Handle,
    /// The weight in bf16: `[columns, depth]`, or `[depth, columns]` if the product is `back`.
    pub weight: Handle,
    /// `[rows, columns]` in f32.
    pub out: Handle,
    /// Rows, depth, columns.
    pub shape: [usize; 3],
    /// Whether with the weight as it lies.
    pub back: bool,
}

/// Computes a product on NVIDIA's tensor cores.
///
/// # Errors
/// If burn has no kernel for it.
#[cfg(feature = "cuda")]
pub fn on_cuda(
    client: &ComputeClient<CudaRuntime>,
    device: &cubecl::cuda::CudaDevice,
    product: Product,
) -> Result<(), String> {
    // burn's name of what computes here, so that both are of one version.
    fn is_of_burn<B: burn_backend::Backend<Device = cubecl::cuda::CudaDevice>>() {}
    is_of_burn::<burn_cuda::Cuda<f32, i32>>();
    compute(client, device, product, DType::BF16, MatmulStrategy::Autotune)
}

/// A product whose factors are of `dtype`.
///
/// # Errors
/// If burn has no kernel for it.
fn compute<R: CubeRuntime>(
    client: &ComputeClient<R>,
    device: &R::CubeDevice,
    Product { x, weight, out, shape: [rows, depth, columns], back }: Product,
    dtype: DType,
    strategy: MatmulStrategy,
) -> Result<(), String> {
    let tensor = |handle, shape: [usize; 2], dtype| {
        CubeTensor::new_contiguous(client.clone(), device.clone(), Shape::from(shape), handle, dtype)
    };
    let x = tensor(x, [rows, depth], dtype);
    let weight = if back {
        tensor(weight, [depth, columns], dtype)
    } else {
        let mut weight = tensor(weight, [columns, depth], dtype);
        // A view: kernels read the transposed matrix where it lies.
        weight.meta.swap(0, 1);
        weight
    };
    let out = tensor(out, [rows, columns], DType::F32);
    // Kernels that a device cannot launch panic in places; one of ours takes over then.
    let computed = catch_unwind(AssertUnwindSafe(|| matmul(x, weight, Some(out), strategy, DType::F32)));
    match computed {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:?}")),
        Err(panic) => Err(said(&*panic)),
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use cubecl::prelude::*;
    use cubecl::wgpu::{WgpuDevice, WgpuRuntime};

    use super::*;

    #[test]
    fn weights_are_read_as_they_lie() {
        let device = WgpuDevice::Cpu;
        let client = WgpuRuntime::client(&device);
        let noise = |seed: usize, len: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        for shape @ [rows, depth, columns] in [[40, 64, 96], [33, 20, 70]] {
            for back in [false, true] {
                let (x, weight) = (noise(1, rows * depth), noise(2, depth * columns));
                let upload = |values: &[f32]| client.create_from_slice(f32::as_bytes(values));
                let out = client.empty(rows * columns * 4);
                let product = Product { x: upload(&x), weight: upload(&weight), out: out.clone(), shape, back };
                compute(&client, &device, product, DType::F32, MatmulStrategy::Cube).unwrap();
                let got = client.read_one(out).unwrap();
                for (at, got) in f32::from_bytes(&got).iter().enumerate() {
                    let (row, column) = (at / columns, at % columns);
                    let of_weight = |k| if back { weight[k * columns + column] } else { weight[column * depth + k] };
                    let expected: f32 = (0..depth).map(|k| x[row * depth + k] * of_weight(k)).sum();
                    assert!((got - expected).abs() < 1e-3, "{shape:?} {back} {row} {column}: {got} {expected}");
                }
            }
        }
    }
}
