//! Blocks as pairs of bf16, by AVX-512's own rounding.

use std::arch::x86_64::*;

use super::{BlockMatrix, TILE_LINES};
use crate::checkpoint::blocks::{BLOCK, Bits};
use crate::engine::host::matmul::PANEL;
use crate::engine::host::matmul::pairs::Tile;

/// Where a value of one of two rows comes from: of each column first the upper row's, then the lower row's.
const BESIDE: [u16; 2 * PANEL] = {
    let mut order = [0; 2 * PANEL];
    let mut n = 0;
    while n < PANEL {
        order[2 * n] = n as u16;
        order[2 * n + 1] = (PANEL + n) as u16;
        n += 1;
    }
    order
};

/// Tiles from number `first` on; values that bf16 has no normal number for become zero.
///
/// # Safety
/// The processor has AVX512F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pairs(weight: &BlockMatrix, panel: usize, first: usize, to: &mut [Tile]) {
    const HALVES: usize = BLOCK / PANEL;
    for (tile, number) in to.iter_mut().zip(first..) {
        let (lines, _) = weight.panel(panel, number / HALVES);
        let half = number % HALVES;
        // SAFETY: arrays of as many bytes as are loaded.
        let affine = weight.affine(panel, number / HALVES).map(|values| unsafe { _mm512_loadu_ps(values.as_ptr()) });
        let (rows, _) = tile.as_chunks_mut::<{ 2 * PANEL }>();
        // Four rows of values have two rows of pairs.
        let (fours, _) = rows.as_chunks_mut::<2>();
        match &weight.bits {
            Bits::Eight => {
                for (line, to) in lines[half * TILE_LINES..][..TILE_LINES].iter().zip(fours) {
                    // SAFETY: a line has 64 bytes.
                    four(unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }, affine, to);
                }
            }
            Bits::Four(_) | Bits::Offset => {
                let (low_half, table) = (_mm512_set1_epi8(15), weight.bits.table());
                // SAFETY: a table has sixteen bytes, a line 64.
                let table = unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())) };
                let lines = &lines[half * TILE_LINES / 2..][..TILE_LINES / 2];
                for (line, to) in lines.iter().zip(fours.as_chunks_mut::<2>().0) {
                    let both = unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) };
                    let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low_half);
                    let [first, second] = to;
                    four(_mm512_shuffle_epi8(table, _mm512_and_si512(both, low_half)), affine, first);
                    four(_mm512_shuffle_epi8(table, upper), affine, second);
                }
            }
        }
    }
}

/// Four rows, of which each column has its values side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn four(bytes: __m512i, [scales, offsets]: [__m512; 2], to: &mut [[u16; 2 * PANEL]; 2]) {
    // Not fused: what is rounded is what other sets round.
    let wide = |word: __m512i| {
        _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(word)), scales), offsets)
    };
    let rows = [
        [wide(_mm512_slli_epi32::<24>(bytes)), wide(_mm512_slli_epi32::<16>(bytes))],
        [wide(_mm512_slli_epi32::<8>(bytes)), wide(bytes)],
    ];
    for ([upper, lower], to) in rows.into_iter().zip(to) {
        // SAFETY: both are 512 plain bits; arrays of as many bytes as are loaded and stored.
        unsafe {
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(lower, upper));
            let beside = _mm512_permutexvar_epi16(_mm512_loadu_si512(BESIDE.as_ptr().cast()), rounded);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), beside);
        }
    }
}
