//! What becomes of a device that is asked for more memory than it has.
#![cfg(feature = "vulkan")]

use cubecl::wgpu::{WgpuDevice, WgpuRuntime};
use petals_kernels::{Gpu, add};

#[test]
fn a_buffer_that_is_too_large_fails_what_needs_it_and_nothing_else() {
    let gpu = Gpu::<WgpuRuntime>::new(&WgpuDevice::Cpu);
    let sum = gpu.upload(&[1.0, 2.0]);
    let huge = gpu.empty(1 << 34);
    add(&gpu, &huge, (&sum, 0), 2);
    println!("{:?}", gpu.download(&huge).map(|v| v.len()));
    println!("{:?}", gpu.download(&sum));
    let fresh = gpu.upload(&[1.0, 2.0]);
    println!("{:?}", gpu.download(&fresh));
}
