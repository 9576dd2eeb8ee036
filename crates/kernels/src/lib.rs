//! Kernels for GPUs: what blocks of transformers need, written once for every runtime of cubecl.
//!
//! Everything between kernels is f32 in row-major matrices; weights, and keys and values of caches, are packed in words of 32 bits
//! ([`Format`], [`Kept`]) and widened in registers, so that no device needs a type narrower than that. Sums are f32.
//!
//! Arguments are arrays and numbers alone: on CUDA they cost no upload, as shapes of tensors would. Numbers of rows and widths are passed when a kernel is
//! launched; what is compiled for is how weights are kept, how wide a head is and what else decides about registers and shared memory.
//!
//! A kernel here is trusted by its callers to be given matrices of the sizes that it is told, and checks none.

#![cfg(any(feature = "cuda", feature = "vulkan", feature = "cuda-sources"))]
#![allow(
    clippy::collapsible_if,
    clippy::if_same_then_else,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are in cubecl's language: what is decided when they are compiled stands apart from what is decided on the device, \
              and arguments are arrays and numbers"
)]

use cubecl::prelude::*;

mod activation;
pub mod attention;
mod boundary;
mod cache;
mod counts;
mod gpu;
mod mixture;
mod norm;
mod product;
mod rotary;
mod rows;
mod small;
mod words;

pub use activation::{Activation, activate, activate_back};
pub use boundary::{Fetched, Leaving, Watch};
pub use cache::{Kept, Kv, Turning, copy_page, turn_and_keep};
pub use counts::{Counted, Counts};
pub use gpu::{Buffer, Gpu, GpuFailure, Limits, keep_kernels};
pub use mixture::{Choice, Chosen, MOST_EXPERTS, add_chosen, choose};
pub use norm::{NormShape, norm, norm_back};
pub use product::{Columns, Halves, Inside, Large, MANY_ROWS, Onto, Product, Weight, product, product_of_chosen};
pub use rotary::{Rotation, rotate};
pub use rows::{add, add_picked, copy, dot_rows, gather, scale_rows, zero};
pub use small::{Strided, column_sums, scale_area, small_product};
pub use words::Format;

/// Units that read neighbours and sum together: a plane of most GPUs.
pub const LANES: usize = 32;

/// Starts a kernel. Its lengths were checked by whoever made the buffers.
macro_rules! launch {
    ($gpu:expr, $cubes:expr, $units:expr, $kernel:path, $($arg:expr),* $(,)?) => {{
        $gpu.counts().launched();
        use $kernel as kernel;
        #[allow(unsafe_code)]
        // SAFETY: callers give matrices of the sizes that they tell, see the crate's documentation.
        unsafe {
            kernel::launch_unchecked::<R>($gpu.client(), $cubes, CubeDim::new_1d($units as u32), $($arg),*)
        };
    }};
}
pub(crate) use launch;

/// Sums `value` over the units of a cube and tells the total to each of them. All of them have to call it.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] units: usize, #[comptime] planes: bool) -> f32 {
    let mut parts = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    let mut total = f32::new(0.0);
    // Those of the sum before may still be read.
    sync_cube();
    if comptime!(planes) {
        let sum = plane_sum(value);
        if unit % LANES == 0 {
            parts[unit / LANES] = sum;
        }
        sync_cube();
        for plane in 0..comptime!(units / LANES) {
            total += parts[plane];
        }
    } else {
        parts[unit] = value;
        sync_cube();
        let mut step = comptime!(units / 2).runtime();
        while step > 0 {
            if unit < step {
                let other = parts[unit + step];
                parts[unit] += other;
            }
            sync_cube();
            step /= 2;
        }
        total = parts[0];
    }
    total
}
