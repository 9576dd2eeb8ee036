//! Rows of matrices: copied, gathered, added, scaled.

use cubecl::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::{LANES, cube_sum, launch};

/// Units of a cube of element-wise kernels.
const UNITS: usize = 256;

#[cube]
fn position() -> usize {
    CUBE_POS * UNITS + UNIT_POS as usize
}

/// Values of a run, in each of two buffers.
#[derive(Debug, Clone, Copy)]
struct Run {
    from: usize,
    to: usize,
    len: usize,
}

/// Copies `len` values from position `from` of `x` to position `to` of `out`.
pub fn copy<R: Runtime>(gpu: &Gpu<R>, (x, from): (&Buffer, usize), (out, to): (&Buffer, usize), len: usize) {
    run::<R>(gpu, (x, out), Run { from, to, len }, false);
}

/// Adds `len` values of `x` to those of `sum` from position `to` on.
pub fn add<R: Runtime>(gpu: &Gpu<R>, x: &Buffer, (sum, to): (&Buffer, usize), len: usize) {
    run::<R>(gpu, (x, sum), Run { from: 0, to, len }, true);
}

fn run<R: Runtime>(gpu: &Gpu<R>, (x, out): (&Buffer, &Buffer), Run { from, to, len }: Run, added: bool) {
    if len == 0 {
        return;
    }
    let cubes = gpu.cubes(len.div_ceil(UNITS));
    launch!(gpu, cubes, UNITS, copy_kernel, gpu.arg(x), gpu.arg(out), from as u32, to as u32, len as u32, added);
}

#[cube(launch_unchecked)]
fn copy_kernel(x: &Array<u32>, out: &mut Array<u32>, from: u32, to: u32, len: u32, #[comptime] added: bool) {
    let at = position();
    if at < len as usize {
        let value = x[from as usize + at];
        if comptime!(added) {
            let sum = f32::reinterpret(out[to as usize + at]) + f32::reinterpret(value);
            out[to as usize + at] = u32::reinterpret(sum);
        } else {
            out[to as usize + at] = value;
        }
    }
}

/// Writes zeros to all of a buffer.
pub fn zero<R: Runtime>(gpu: &Gpu<R>, out: &Buffer) {
    if out.is_empty() {
        return;
    }
    launch!(gpu, gpu.cubes(out.len().div_ceil(UNITS)), UNITS, zero_kernel, gpu.arg(out), out.len() as u32);
}

#[cube(launch_unchecked)]
fn zero_kernel(out: &mut Array<u32>, len: u32) {
    let at = position();
    if at < len as usize {
        out[at] = 0u32;
    }
}

/// The rows of `x` that are `picked`, `width` values each, in `out`.
pub fn gather<R: Runtime>(gpu: &Gpu<R>, x: &Buffer, picked: &Buffer, out: &Buffer, width: usize) {
    let len = picked.len() * width;
    if len == 0 {
        return;
    }
    let cubes = gpu.cubes(len.div_ceil(UNITS));
    launch!(gpu, cubes, UNITS, gather_kernel, gpu.arg(x), gpu.arg(picked), gpu.arg(out), width as u32, len as u32);
}

#[cube(launch_unchecked)]
fn gather_kernel(x: &Array<f32>, picked: &Array<u32>, out: &mut Array<f32>, width: u32, len: u32) {
    let at = position();
    if at < len as usize {
        let width = width as usize;
        out[at] = x[picked[at / width] as usize * width + at % width];
    }
}

/// Adds the rows of `part`, `width` values each, to those of `sum` that are `picked`, none of them twice.
pub fn add_picked<R: Runtime>(gpu: &Gpu<R>, part: &Buffer, picked: &Buffer, sum: &Buffer, width: usize) {
    let len = picked.len() * width;
    if len == 0 {
        return;
    }
    let cubes = gpu.cubes(len.div_ceil(UNITS));
    launch!(
        gpu,
        cubes,
        UNITS,
        add_picked_kernel,
        gpu.arg(part),
        gpu.arg(picked),
        gpu.arg(sum),
        width as u32,
        len as u32
    );
}

#[cube(launch_unchecked)]
fn add_picked_kernel(part: &Array<f32>, picked: &Array<u32>, sum: &mut Array<f32>, width: u32, len: u32) {
    let at = position();
    if at < len as usize {
        let width = width as usize;
        let row = picked[at / width] as usize;
        sum[row * width + at % width] += part[at];
    }
}

/// Multiplies each row of `x`, `width` values, by its factor.
pub fn scale_rows<R: Runtime>(gpu: &Gpu<R>, x: &Buffer, factors: &Buffer, width: usize) {
    let len = factors.len() * width;
    if len == 0 {
        return;
    }
    let cubes = gpu.cubes(len.div_ceil(UNITS));
    launch!(gpu, cubes, UNITS, scale_rows_kernel, gpu.arg(factors), gpu.arg(x), width as u32, len as u32);
}

#[cube(launch_unchecked)]
fn scale_rows_kernel(factors: &Array<f32>, x: &mut Array<f32>, width: u32, len: u32) {
    let at = position();
    if at < len as usize {
        x[at] *= factors[at / width as usize];
    }
}

/// The products of the rows of `a` with those of `b`, `width` values each, in `out`.
pub fn dot_rows<R: Runtime>(gpu: &Gpu<R>, (a, b): (&Buffer, &Buffer), out: &Buffer, width: usize) {
    if out.is_empty() {
        return;
    }
    let (units, planes) = (2 * LANES, gpu.limits().planes);
    let (cubes, rows) = (gpu.cubes(out.len()), out.len() as u32);
    launch!(
        gpu,
        cubes,
        units,
        dot_rows_kernel,
        gpu.arg(a),
        gpu.arg(b),
        gpu.arg(out),
        width as u32,
        rows,
        units,
        planes
    );
}

#[cube(launch_unchecked)]
fn dot_rows_kernel(
    a: &Array<f32>,
    b: &Array<f32>,
    out: &mut Array<f32>,
    width: u32,
    rows: u32,
    #[comptime] units: usize,
    #[comptime] planes: bool,
) {
    let row = CUBE_POS;
    if row < rows as usize {
        let first = row * width as usize;
        let mut sum = f32::new(0.0);
        for i in range_stepped(UNIT_POS as usize, width as usize, units) {
            sum += a[first + i] * b[first + i];
        }
        let total = cube_sum(sum, units, planes);
        if UNIT_POS == 0 {
            out[row] = total;
        }
    }
}
