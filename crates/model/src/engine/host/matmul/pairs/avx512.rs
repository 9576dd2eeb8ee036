//! AVX-512's dot products of bf16 pairs (AVX512_BF16).

use std::arch::x86_64::*;

use super::{BLOCK_COLUMNS, Kernel, Sums};
use crate::engine::host::matmul::PANEL;

pub(in super::super) struct Avx512Bf16;

impl Kernel for Avx512Bf16 {
    const ROWS: usize = 12;

    unsafe fn session(calls: impl FnOnce()) {
        calls();
    }

    unsafe fn multiply(rows: usize, depth: usize, left: (*const u16, usize), panels: [*const u16; 2], sums: &mut Sums) {
        // SAFETY: by the contract of the trait.
        unsafe {
            match rows {
                1 => block::<1>(depth, left, panels, sums),
                2 => block::<2>(depth, left, panels, sums),
                3..=4 => block::<4>(depth, left, panels, sums),
                5..=8 => block::<8>(depth, left, panels, sums),
                _ => block::<12>(depth, left, panels, sums),
            }
        }
    }
}

/// # Safety
/// The processor has AVX512_BF16; see [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn block<const ROWS: usize>(
    depth: usize,
    (left, stride): (*const u16, usize),
    panels: [*const u16; 2],
    sums: &mut Sums,
) {
    // SAFETY: rows and panels have `depth` values, an even number; vectors are of plain bits.
    unsafe {
        let mut totals = [[_mm512_setzero_ps(); 2]; ROWS];
        for pair in 0..depth / 2 {
            let weights = panels.map(|panel| {
                let bits = _mm512_loadu_si512(panel.add(pair * 2 * PANEL).cast());
                std::mem::transmute::<__m512i, __m512bh>(bits)
            });
            for (row, totals) in totals.iter_mut().enumerate() {
                let both = left.add(row * stride + 2 * pair).cast::<i32>().read_unaligned();
                let values = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(both));
                for (total, weights) in totals.iter_mut().zip(weights) {
                    *total = _mm512_dpbf16_ps(*total, values, weights);
                }
            }
        }
        for (row, totals) in totals.into_iter().enumerate() {
            for (panel, total) in totals.into_iter().enumerate() {
                _mm512_storeu_ps(sums[row * BLOCK_COLUMNS + panel * PANEL..].as_mut_ptr(), total);
            }
        }
    }
}
