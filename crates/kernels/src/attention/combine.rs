//! The parts of a split attention, put together.

use cubecl::prelude::*;

use super::LOWEST;
use crate::gpu::{Buffer, Gpu};
use crate::launch;

const UNITS: usize = 128;

/// From sums `[splits, rows, heads, dim]`, with the largest score and the sum of exponentials of each, to outputs.
pub(super) fn combine<R: Runtime>(
    gpu: &Gpu<R>,
    (sums, extents, sinks): (&Buffer, &Buffer, Option<&Buffer>),
    out: &Buffer,
    [splits, rows, heads, dim]: [usize; 4],
) {
    let len = rows * heads * dim;
    launch!(
        gpu,
        gpu.cubes(len.div_ceil(UNITS)),
        UNITS,
        combine_kernel,
        gpu.arg(sums),
        gpu.arg(extents),
        gpu.input(sinks),
        gpu.arg(out),
        splits as u32,
        heads as u32,
        len as u32,
        dim,
        sinks.is_some(),
    );
}

#[cube(launch_unchecked)]
fn combine_kernel(
    sums: &Array<f32>,
    extents: &Array<f32>,
    sinks: &Array<f32>,
    out: &mut Array<f32>,
    splits: u32,
    heads: u32,
    len: u32,
    #[comptime] dim: usize,
    #[comptime] sunk: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    let len = len as usize;
    if at < len {
        let place = at / dim;
        let places = len / dim;
        let mut largest = f32::new(LOWEST);
        if comptime!(sunk) {
            largest = sinks[place % heads as usize];
        }
        for split in 0..splits as usize {
            largest = max(largest, extents[2 * (split * places + place)]);
        }
        let mut sum = f32::new(0.0);
        if comptime!(sunk) {
            sum = f32::exp(sinks[place % heads as usize] - largest);
        }
        let mut value = f32::new(0.0);
        for split in 0..splits as usize {
            let weight = f32::exp(extents[2 * (split * places + place)] - largest);
            sum += weight * extents[2 * (split * places + place) + 1];
            value += weight * sums[split * len + at];
        }
        out[at] = value / sum;
    }
}
