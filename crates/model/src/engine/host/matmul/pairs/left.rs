//! The left matrix of a product, rounded to bf16 and laid out as kernels read it.

use std::ops::Range;

use rayon::prelude::*;

use super::{DEPTH, round_to_bf16};
use crate::engine::host::matmul::aligned::Aligned;
use crate::engine::host::simd::vectorized;

/// Rows in strips, the depth of a strip in tiles of [`DEPTH`]: `[strip][depth / DEPTH][height][DEPTH]`, zero where there is nothing. So a kernel reads
/// a strip from front to back: rows as they come lie pages apart, often a power of two, which neither caches nor prefetchers like.
pub(super) struct Left {
    height: usize,
    /// Of a strip's values.
    length: usize,
    values: Aligned<u16>,
}

impl Left {
    /// Rounds rows of `inner` values (to nearest even), in strips of `height`.
    pub(super) fn new(rows: &[f32], inner: usize, height: usize) -> Self {
        let length = inner.next_multiple_of(DEPTH) * height;
        let mut values = Aligned::new((rows.len() / inner).div_ceil(height) * length);
        // A part of a strip's tiles with the same part of its rows is a piece of work, or few rows would be one thread's.
        values.par_chunks_mut(length).zip(rows.par_chunks(height * inner)).for_each(|(strip, rows)| {
            strip.par_chunks_mut(height * PART).enumerate().for_each(|(part, tiles)| {
                let columns = part * PART..inner.min((part + 1) * PART);
                vectorized(
                    #[inline(always)]
                    || round(rows, inner, columns.clone(), height, tiles),
                );
            });
        });
        Self { height, length, values }
    }

    /// The strip that begins with `row`, from value `first` of the depth on (a multiple of [`DEPTH`]).
    pub(super) fn strip(&self, row: usize, first: usize) -> &[u16] {
        &self.values[row / self.height * self.length + first * self.height..]
    }
}

/// Values of the depth in a piece of work.
const PART: usize = 16 * DEPTH;

#[inline(always)]
fn round(rows: &[f32], inner: usize, columns: Range<usize>, height: usize, tiles: &mut [u16]) {
    for (n, row) in rows.chunks_exact(inner).enumerate() {
        for (values, tile) in row[columns.clone()].chunks(DEPTH).zip(tiles.chunks_exact_mut(height * DEPTH)) {
            tile[n * DEPTH..][..DEPTH].iter_mut().zip(values).for_each(|(to, &value)| *to = round_to_bf16(value));
        }
    }
}
