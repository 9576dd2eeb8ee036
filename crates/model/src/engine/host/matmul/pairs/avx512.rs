//! AVX-512's dot products of bf16 pairs (AVX512_BF16).

use std::arch::x86_64::*;

use super::{Block, DEPTH, Kernel, PANELS};
use crate::engine::host::matmul::PANEL;

pub(in super::super) struct Avx512Bf16;

impl Kernel for Avx512Bf16 {
    const ROWS: usize = 12;

    fn height(rows: usize) -> usize {
        match rows {
            0..=2 => rows,
            3..=4 => 4,
            5..=8 => 8,
            _ => Self::ROWS,
        }
    }

    unsafe fn session(calls: impl FnOnce()) {
        calls();
    }

    unsafe fn multiply(block: Block, sums: &mut [f32]) {
        // SAFETY: by the contract of the trait.
        unsafe {
            match Self::height(block.rows) {
                1 => multiply::<1>(block, sums),
                2 => multiply::<2>(block, sums),
                4 => multiply::<4>(block, sums),
                8 => multiply::<8>(block, sums),
                _ => multiply::<12>(block, sums),
            }
        }
    }
}

/// # Safety
/// The processor has AVX512_BF16; see [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply<const ROWS: usize>(block: Block, sums: &mut [f32]) {
    let Block { left, height, depth, panels, onto, .. } = block;
    let at = |row: usize, panel: usize| (panel * Avx512Bf16::ROWS + row) * PANEL;
    assert!(sums.len() >= at(0, PANELS), "sums of a block");
    // SAFETY: rows and panels have `depth` values, in whole tiles; sums have the room that was asserted; vectors are of plain bits.
    unsafe {
        let mut totals = [[_mm512_setzero_ps(); PANELS]; ROWS];
        if onto {
            for (row, totals) in totals.iter_mut().enumerate() {
                for (panel, total) in totals.iter_mut().enumerate() {
                    *total = _mm512_loadu_ps(sums.as_ptr().add(at(row, panel)));
                }
            }
        }
        for tile in 0..depth / DEPTH {
            let left = left.add(tile * height * DEPTH);
            for pair in 0..DEPTH / 2 {
                let weights = panels.map(|panel| {
                    let bits = _mm512_loadu_si512(panel.add((tile * DEPTH + pair * 2) * PANEL).cast());
                    std::mem::transmute::<__m512i, __m512bh>(bits)
                });
                for (row, totals) in totals.iter_mut().enumerate() {
                    let both = left.add(row * DEPTH + 2 * pair).cast::<i32>().read_unaligned();
                    let values = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(both));
                    for (total, weights) in totals.iter_mut().zip(weights) {
                        *total = _mm512_dpbf16_ps(*total, values, weights);
                    }
                }
            }
        }
        for (row, totals) in totals.into_iter().enumerate() {
            for (panel, total) in totals.into_iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(at(row, panel)), total);
            }
        }
    }
}
