//! Integer products with AVX2: bytes are multiplied in pairs, the first unsigned. So the weights' signs are moved to the quants; neither is ever -128, and no sum
//! of two products is too large for sixteen bits.

use std::arch::x86_64::*;

use super::{Integers, Left, Out, Panel, by_rows};
use crate::checkpoint::blocks::{Bits, Table};
use crate::engine::host::matmul::PANEL;

#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

impl Integers for Avx2 {
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;
    type Table = __m256i;
    const COLUMNS: usize = 8;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn eight(line: *const u8) -> __m256i {
        // SAFETY: by the contract of the trait, as everywhere below.
        unsafe { _mm256_loadu_si256(line.cast()) }
    }
    #[inline(always)]
    unsafe fn table(values: &Table) -> __m256i {
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn four(line: *const u8, table: __m256i) -> [__m256i; 2] {
        unsafe {
            let (bytes, half) = (_mm256_loadu_si256(line.cast()), _mm256_set1_epi8(15));
            let low = _mm256_and_si256(bytes, half);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half);
            [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
        }
    }
    #[inline(always)]
    unsafe fn start(_: *const i32) -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: __m256i, quants: *const i8) -> __m256i {
        unsafe {
            let quants = _mm256_set1_epi32(quants.cast::<i32>().read_unaligned());
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quants, weights));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(values: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(values) }
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(values.cast())) }
    }
    #[inline(always)]
    unsafe fn affine(numbers: *const u16, steps: *const f32) -> [__m256; 2] {
        unsafe {
            let numbers = _mm256_cvtepu16_epi32(_mm_loadu_si128(numbers.cast()));
            let of_scales = _mm256_cvtepi32_ps(_mm256_and_si256(numbers, _mm256_set1_epi32(255)));
            let of_offsets = _mm256_cvtepi32_ps(_mm256_srli_epi32::<8>(numbers));
            let (scales, offsets) = (_mm256_loadu_ps(steps), _mm256_loadu_ps(steps.add(PANEL)));
            [_mm256_mul_ps(of_scales, scales), _mm256_mul_ps(of_offsets, offsets)]
        }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: __m256) {
        unsafe { _mm256_storeu_ps(at, values) }
    }
    #[inline(always)]
    unsafe fn add_scaled(sums: __m256, ints: __m256i, scales: __m256, scale: *const f32) -> __m256 {
        unsafe {
            let scales = _mm256_mul_ps(scales, _mm256_broadcast_ss(&*scale));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints), scales, sums)
        }
    }
    #[inline(always)]
    unsafe fn add_offsets(sums: __m256, offsets: __m256, factor: f32) -> __m256 {
        unsafe { _mm256_fmadd_ps(offsets, _mm256_set1_ps(factor), sums) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline]
    unsafe fn multiply<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn run<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
            let table = &bits.table();
            // SAFETY: by the contract of the trait.
            unsafe { by_rows!(Avx2, VECTORS, rows, bits, (table, panel, left, out), 1 2 3 4) }
        }
        // SAFETY: by the contract of the trait.
        unsafe { run::<VECTORS>(rows, bits, panel, left, out) }
    }
}
