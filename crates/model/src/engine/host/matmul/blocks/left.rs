//! The left matrix of an integer product, rounded to eight bits on the fly.

use rayon::prelude::*;

use crate::checkpoint::blocks::BLOCK;
use crate::engine::host::simd::vectorized;

/// Rows in blocks: `values = scale · quants`.
#[derive(Debug)]
pub(super) struct RoundedRows {
    /// `[rows, blocks, BLOCK]`
    pub(super) quants: Vec<i8>,
    /// `[rows, blocks]`
    pub(super) scales: Vec<f32>,
    /// The sums of the quants of each block, `[rows, blocks]`: what an offset of the weights adds.
    pub(super) sums: Vec<i32>,
    /// Blocks of a row.
    pub(super) blocks: usize,
}

impl RoundedRows {
    /// Rounds rows of `length` values. A block's largest becomes 127; a block with a value that is not finite has a scale that is not, and so spoils the
    /// sums that it is in.
    pub(super) fn new(rows: &[f32], length: usize) -> Self {
        let (count, blocks) = (rows.len() / length, length.div_ceil(BLOCK));
        let mut rounded = Self {
            quants: vec![0; count * blocks * BLOCK],
            scales: vec![0.0; count * blocks],
            sums: vec![0; count * blocks],
            blocks,
        };
        let Self { quants, scales, sums, .. } = &mut rounded;
        let to = quants.par_chunks_exact_mut(blocks * BLOCK).zip(scales.par_chunks_exact_mut(blocks));
        let to = to.zip(sums.par_chunks_exact_mut(blocks));
        rows.par_chunks_exact(length).zip(to).with_min_len(4).for_each(|(row, ((quants, scales), sums))| {
            vectorized(
                #[inline(always)]
                || round_row(row, quants, scales, sums),
            );
        });
        rounded
    }
}

#[inline(always)]
fn round_row(row: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let (quants, _) = quants.as_chunks_mut::<BLOCK>();
    let (whole, rest) = row.as_chunks::<BLOCK>();
    for (((values, quants), scale), sum) in whole.iter().zip(quants.iter_mut()).zip(&mut *scales).zip(&mut *sums) {
        (*scale, *sum) = round_block(values, quants);
    }
    if !rest.is_empty() {
        let mut values = [0.0; BLOCK];
        values[..rest.len()].copy_from_slice(rest);
        (scales[whole.len()], sums[whole.len()]) = round_block(&values, &mut quants[whole.len()]);
    }
}

#[inline(always)]
fn round_block(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, i32) {
    /// Adding it leaves a number's nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut lanes = [0u32; 16];
    for (i, v) in values.iter().enumerate() {
        // Of positive floats, NaN included, the larger has the larger bits.
        lanes[i % 16] = lanes[i % 16].max(v.to_bits() & 0x7fff_ffff);
    }
    let most = f32::from_bits(lanes.into_iter().fold(0, u32::max));
    let scale = most / 127.0;
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 127.0 / most };
    let mut sum = 0;
    for (quant, &v) in quants.iter_mut().zip(values) {
        let rounded = (v * inverse + ROUND).to_bits() as i8;
        *quant = rounded;
        sum += i32::from(rounded);
    }
    (if most < f32::INFINITY { scale } else { f32::NAN }, sum)
}
