//! Rows on their way from the host: half as many bytes where they are bf16 anyway.

use cubecl::prelude::*;
use rayon::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::launch;

const UNITS: usize = 256;
/// Fewer values are not worth a kernel.
const MANY: usize = 1 << 14;
/// Values that a thread takes.
const TASK: usize = 1 << 16;

/// Pairs of bf16, if all of many values are such.
pub(crate) fn halves(values: &[f32]) -> Option<Vec<u32>> {
    if values.len() < MANY || !values.len().is_multiple_of(2) {
        return None;
    }
    let are_halves = |values: &[f32]| values.iter().fold(0, |bits, value| bits | value.to_bits()) & 0xffff == 0;
    if !values.par_chunks(TASK).all(are_halves) {
        return None;
    }
    let (pairs, _) = values.as_chunks::<2>();
    Some(pairs.par_iter().map(|[low, high]| low.to_bits() >> 16 | high.to_bits()).collect())
}

/// `len` floats of pairs of bf16.
pub(crate) fn widened<R: Runtime>(gpu: &Gpu<R>, halves: &Buffer, len: usize) -> Buffer {
    let out = gpu.empty(len);
    launch!(gpu, gpu.cubes(len.div_ceil(UNITS)), UNITS, widened_kernel, gpu.arg(halves), gpu.arg(&out), len as u32);
    out
}

#[cube(launch_unchecked)]
fn widened_kernel(halves: &Array<u32>, out: &mut Array<f32>, len: u32) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        let word = halves[at / 2];
        out[at] = f32::reinterpret(select(at % 2 == 0, word << 16u32, word & 0xffff_0000u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_many_values_that_are_bf16_go_as_such() {
        let value = |n: usize| f32::from_bits(((n as u32 * 40_503) & 0x7f7f) << 16);
        let mut values: Vec<f32> = (0..MANY).map(value).collect();
        let packed = halves(&values).unwrap();
        let back = packed.iter().flat_map(|word| [word << 16, word & 0xffff_0000]).map(f32::from_bits);
        assert!(back.eq(values.iter().copied()));
        values[MANY - 1] = 0.1;
        assert!(halves(&values).is_none() && halves(&values[..4]).is_none());
    }
}
