//! Integer products with VNNI: dot products of four bytes, the first ones unsigned. So 128 is added to the weights, and what that adds to a block is taken from
//! its sum: 128 times the sum of its quants.

use std::arch::x86_64::*;

use super::{Integers, Left, Out, Panel, by_rows};
use crate::checkpoint::blocks::{Bits, Table};
use crate::engine::host::matmul::PANEL;

/// AVX-512's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Vnni;

impl Integers for Avx512Vnni {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    type Table = __m512i;
    const COLUMNS: usize = 16;
    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn eight(line: *const u8) -> __m512i {
        // SAFETY: by the contract of the trait, as everywhere below.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(line.cast()), _mm512_set1_epi8(i8::MIN)) }
    }
    #[inline(always)]
    unsafe fn table(values: &Table) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast()));
            _mm512_xor_si512(table, _mm512_set1_epi8(i8::MIN))
        }
    }
    #[inline(always)]
    unsafe fn four(line: *const u8, table: __m512i) -> [__m512i; 2] {
        unsafe {
            let (bytes, half) = (_mm512_loadu_si512(line.cast()), _mm512_set1_epi8(15));
            let low = _mm512_and_si512(bytes, half);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), half);
            [_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)]
        }
    }
    #[inline(always)]
    unsafe fn start(sum: *const i32) -> __m512i {
        unsafe { _mm512_set1_epi32(-128 * *sum) }
    }
    #[inline(always)]
    unsafe fn dot(sums: __m512i, weights: __m512i, quants: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(quants.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(values: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(values) }
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.cast())) }
    }
    #[inline(always)]
    unsafe fn affine(numbers: *const u16, steps: *const f32) -> [__m512; 2] {
        unsafe {
            let numbers = _mm512_cvtepu16_epi32(_mm256_loadu_si256(numbers.cast()));
            let of_scales = _mm512_cvtepi32_ps(_mm512_and_si512(numbers, _mm512_set1_epi32(255)));
            let of_offsets = _mm512_cvtepi32_ps(_mm512_srli_epi32::<8>(numbers));
            let (scales, offsets) = (_mm512_loadu_ps(steps), _mm512_loadu_ps(steps.add(PANEL)));
            [_mm512_mul_ps(of_scales, scales), _mm512_mul_ps(of_offsets, offsets)]
        }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: __m512) {
        unsafe { _mm512_storeu_ps(at, values) }
    }
    #[inline(always)]
    unsafe fn add_scaled(sums: __m512, ints: __m512i, scales: __m512, scale: *const f32) -> __m512 {
        unsafe {
            let scales = _mm512_mul_ps(scales, _mm512_set1_ps(*scale));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), scales, sums)
        }
    }
    #[inline(always)]
    unsafe fn add_offsets(sums: __m512, offsets: __m512, factor: f32) -> __m512 {
        unsafe { _mm512_fmadd_ps(offsets, _mm512_set1_ps(factor), sums) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline]
    unsafe fn multiply<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn run<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
            let table = &bits.table();
            // SAFETY: by the contract of the trait.
            unsafe { by_rows!(Avx512Vnni, VECTORS, rows, bits, (table, panel, left, out), 1 2 3 4 5 6 7 8 9 10 11 12) }
        }
        // SAFETY: by the contract of the trait.
        unsafe { run::<VECTORS>(rows, bits, panel, left, out) }
    }
}

/// That of processors without AVX-512: everything but the dot product is AVX2's.
#[derive(Debug, Clone, Copy)]
pub(super) struct AvxVnni;

impl Integers for AvxVnni {
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;
    type Table = __m256i;
    const COLUMNS: usize = 8;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn eight(line: *const u8) -> __m256i {
        // SAFETY: by the contract of the trait, as everywhere below.
        unsafe { _mm256_xor_si256(super::Avx2::eight(line), _mm256_set1_epi8(i8::MIN)) }
    }
    #[inline(always)]
    unsafe fn table(values: &Table) -> __m256i {
        unsafe { _mm256_xor_si256(super::Avx2::table(values), _mm256_set1_epi8(i8::MIN)) }
    }
    #[inline(always)]
    unsafe fn four(line: *const u8, table: __m256i) -> [__m256i; 2] {
        unsafe { super::Avx2::four(line, table) }
    }
    #[inline(always)]
    unsafe fn start(sum: *const i32) -> __m256i {
        unsafe { _mm256_set1_epi32(-128 * *sum) }
    }
    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: __m256i, quants: *const i8) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(sums, weights, _mm256_set1_epi32(quants.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { super::Avx2::zero() }
    }
    #[inline(always)]
    unsafe fn load(values: *const f32) -> __m256 {
        unsafe { super::Avx2::load(values) }
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> __m256 {
        unsafe { super::Avx2::load_f16(values) }
    }
    #[inline(always)]
    unsafe fn affine(numbers: *const u16, steps: *const f32) -> [__m256; 2] {
        unsafe { super::Avx2::affine(numbers, steps) }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: __m256) {
        unsafe { super::Avx2::store(at, values) }
    }
    #[inline(always)]
    unsafe fn add_scaled(sums: __m256, ints: __m256i, scales: __m256, scale: *const f32) -> __m256 {
        unsafe { super::Avx2::add_scaled(sums, ints, scales, scale) }
    }
    #[inline(always)]
    unsafe fn add_offsets(sums: __m256, offsets: __m256, factor: f32) -> __m256 {
        unsafe { super::Avx2::add_offsets(sums, offsets, factor) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { super::Avx2::add(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { super::Avx2::prefetch(at) }
    }

    #[inline]
    unsafe fn multiply<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        unsafe fn run<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
            let table = &bits.table();
            // SAFETY: by the contract of the trait.
            unsafe { by_rows!(AvxVnni, VECTORS, rows, bits, (table, panel, left, out), 1 2 3 4) }
        }
        // SAFETY: by the contract of the trait.
        unsafe { run::<VECTORS>(rows, bits, panel, left, out) }
    }
}
