//! Sums of parts.

use cubecl::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::launch;

const UNITS: usize = 256;

/// The sums over the first axis of `[parts, len]`, in the order of the parts.
pub(super) fn sum_parts<R: Runtime>(gpu: &Gpu<R>, parts: &Buffer, out: &Buffer, [count, len]: [usize; 2]) {
    let cubes = gpu.cubes(len.div_ceil(UNITS));
    launch!(gpu, cubes, UNITS, sum_parts_kernel, gpu.arg(parts), gpu.arg(out), count as u32, len as u32);
}

#[cube(launch_unchecked)]
fn sum_parts_kernel(parts: &Array<f32>, out: &mut Array<f32>, count: u32, len: u32) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    let len = len as usize;
    if at < len {
        let mut sum = f32::new(0.0);
        for part in 0..count as usize {
            sum += parts[part * len + at];
        }
        out[at] = sum;
    }
}
