//! The vector operations that the micro-kernel needs, for each instruction set.
//!
//! Everything is inlined into functions that are compiled for the set (`super::micro`); none of it may be called
//! elsewhere.

/// One instruction set with vectors of [`Simd::LANES`] f32 values.
///
/// # Safety
/// Callers run on a processor that has the set, inside of a function compiled for it; pointers are valid for the lanes
/// that are read or written.
pub(crate) trait Simd: Copy {
    type Vector: Copy;
    const LANES: usize;
    /// Rows that one call of the micro-kernel takes, so that its sums fill the registers.
    const ROWS: usize;
    /// Panels that it takes side by side.
    const PANELS: usize;

    unsafe fn zero() -> Self::Vector;
    unsafe fn splat(value: *const f32) -> Self::Vector;
    /// Fetches what is at `at` into the cache; it need not exist.
    unsafe fn prefetch(at: *const u8);
    unsafe fn load(values: *const f32) -> Self::Vector;
    unsafe fn load_bf16(values: *const u16) -> Self::Vector;
    unsafe fn load_f16(values: *const u16) -> Self::Vector;
    unsafe fn load_i8(values: *const i8) -> Self::Vector;
    unsafe fn store(at: *mut f32, values: Self::Vector);
    /// `a·b + c`
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
}

/// Plain Rust, for processors without a set of their own here. Compilers vectorise it where they can.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type Vector = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 4;
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> [f32; 4] {
        // SAFETY: by the contract of the trait, as everywhere below.
        [unsafe { *value }; 4]
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn load(values: *const f32) -> [f32; 4] {
        unsafe { values.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(values: *const u16) -> [f32; 4] {
        let values = unsafe { values.cast::<[u16; 4]>().read_unaligned() };
        values.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> [f32; 4] {
        let values = unsafe { values.cast::<[u16; 4]>().read_unaligned() };
        values.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(values: *const i8) -> [f32; 4] {
        unsafe { values.cast::<[i8; 4]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: [f32; 4]) {
        unsafe { at.cast::<[f32; 4]>().write_unaligned(values) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
}

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// AVX2 with FMA and F16C: every x86 server and desktop since 2015.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Avx2;

    impl Simd for Avx2 {
        type Vector = __m256;
        const LANES: usize = 8;
        const ROWS: usize = 6;
        const PANELS: usize = 1;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(value: *const f32) -> __m256 {
            unsafe { _mm256_broadcast_ss(&*value) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn load(values: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(values) }
        }
        #[inline(always)]
        unsafe fn load_bf16(values: *const u16) -> __m256 {
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(values: *const u16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(values.cast())) }
        }
        #[inline(always)]
        unsafe fn load_i8(values: *const i8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(values.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(at: *mut f32, values: __m256) {
            unsafe { _mm256_storeu_ps(at, values) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
    }

    /// AVX-512: twice the width, twice the registers.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Avx512;

    impl Simd for Avx512 {
        type Vector = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 12;
        const PANELS: usize = 2;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(value: *const f32) -> __m512 {
            unsafe { _mm512_set1_ps(*value) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn load(values: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(values) }
        }
        #[inline(always)]
        unsafe fn load_bf16(values: *const u16) -> __m512 {
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(values: *const u16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.cast())) }
        }
        #[inline(always)]
        unsafe fn load_i8(values: *const i8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(values.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(at: *mut f32, values: __m512) {
            unsafe { _mm512_storeu_ps(at, values) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }
}
