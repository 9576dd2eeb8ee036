//! The left matrix of an integer product, rounded to eight bits on the fly.

use rayon::prelude::*;

use crate::checkpoint::blocks::BLOCK;
use crate::engine::host::simd::vectorized;

/// Rows in blocks: `values = scale · quants`, summed over the parts of a row.
#[derive(Debug)]
pub(super) struct RoundedRows {
    /// `[rows, parts, blocks, BLOCK]`
    pub(super) quants: Vec<i8>,
    /// `[rows, parts, blocks]`
    pub(super) scales: Vec<f32>,
    /// The sums of the quants of each block, `[rows, parts, blocks]`: what an offset of the weights adds.
    pub(super) sums: Vec<i32>,
    /// One, or two: the second has what the first leaves by rounding, which makes sixteen bits of them.
    pub(super) parts: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
}

impl RoundedRows {
    /// Rounds rows of `length` values. A block's largest becomes 127; a block with a value that is not finite has a scale that is not, and so spoils the
    /// sums that it is in.
    pub(super) fn new(rows: &[f32], length: usize, parts: usize) -> Self {
        let (count, blocks) = (rows.len() / length, length.div_ceil(BLOCK));
        let of_row = parts * blocks;
        let mut rounded = Self {
            quants: vec![0; count * of_row * BLOCK],
            scales: vec![0.0; count * of_row],
            sums: vec![0; count * of_row],
            parts,
            blocks,
        };
        let Self { quants, scales, sums, .. } = &mut rounded;
        let to = quants.par_chunks_exact_mut(of_row * BLOCK).zip(scales.par_chunks_exact_mut(of_row));
        let to = to.zip(sums.par_chunks_exact_mut(of_row));
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
    let blocks = row.len().div_ceil(BLOCK);
    let mut values = [0.0; BLOCK];
    for (block, part) in row.chunks(BLOCK).enumerate() {
        values[..part.len()].copy_from_slice(part);
        values[part.len()..].fill(0.0);
        for at in (block..scales.len()).step_by(blocks) {
            (scales[at], sums[at]) = round_block(&mut values, &mut quants[at]);
        }
    }
}

/// Leaves in `values` what is lost.
#[inline(always)]
fn round_block(values: &mut [f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, i32) {
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
    for (quant, v) in quants.iter_mut().zip(values) {
        let shifted = *v * inverse + ROUND;
        let rounded = shifted.to_bits() as i8;
        *quant = rounded;
        sum += i32::from(rounded);
        *v -= (shifted - ROUND) * scale;
    }
    (if most < f32::INFINITY { scale } else { f32::NAN }, sum)
}
