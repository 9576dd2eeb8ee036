//! Integer products with NEON: dot products of four bytes where the processor has them, else products of bytes that are added up in pairs. Neither weights nor
//! quants are ever both -128, and no sum of two products is too large for sixteen bits.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Dots, Integers, Left, Out, Panel, by_rows};
use crate::checkpoint::blocks::{Bits, Table};
use crate::engine::host::matmul::PANEL;
use crate::engine::host::matmul::simd::{self, Simd};

/// What this processor has of them.
pub(super) fn available() -> impl Iterator<Item = Dots> {
    let dots = std::arch::is_aarch64_feature_detected!("dotprod");
    [false, true].into_iter().filter(move |dot| !dot || dots).map(|dot| Dots::Neon { dot })
}

/// Four columns at a time; `DOT` says whether the processor has dot products.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neon<const DOT: bool>;

impl<const DOT: bool> Integers for Neon<DOT> {
    type Bytes = int8x16_t;
    type Ints = int32x4_t;
    type Floats = float32x4_t;
    type Table = int8x16_t;
    const COLUMNS: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn eight(line: *const u8) -> int8x16_t {
        // SAFETY: by the contract of the trait, as everywhere below.
        unsafe { vld1q_s8(line.cast()) }
    }
    #[inline(always)]
    unsafe fn table(values: &Table) -> int8x16_t {
        unsafe { vld1q_s8(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn four(line: *const u8, table: int8x16_t) -> [int8x16_t; 2] {
        unsafe {
            let (bytes, half) = (vld1q_u8(line), vdupq_n_u8(15));
            [vqtbl1q_s8(table, vandq_u8(bytes, half)), vqtbl1q_s8(table, vshrq_n_u8::<4>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn start(_: *const i32) -> int32x4_t {
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, weights: int8x16_t, quants: *const i8) -> int32x4_t {
        unsafe {
            let quants = vreinterpretq_s8_s32(vdupq_n_s32(quants.cast::<i32>().read_unaligned()));
            if DOT {
                return dot(sums, weights, quants);
            }
            let low = vmull_s8(vget_low_s8(weights), vget_low_s8(quants));
            let high = vmull_high_s8(weights, quants);
            vpadalq_s16(sums, vpaddq_s16(low, high))
        }
    }
    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn load(values: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(values) }
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> float32x4_t {
        unsafe { simd::Neon::load_f16(values) }
    }
    #[inline(always)]
    unsafe fn affine(numbers: *const u16, steps: *const f32) -> [float32x4_t; 2] {
        unsafe {
            let numbers = vmovl_u16(vld1_u16(numbers));
            let of_scales = vcvtq_f32_u32(vandq_u32(numbers, vdupq_n_u32(255)));
            let of_offsets = vcvtq_f32_u32(vshrq_n_u32::<8>(numbers));
            [vmulq_f32(of_scales, vld1q_f32(steps)), vmulq_f32(of_offsets, vld1q_f32(steps.add(PANEL)))]
        }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: float32x4_t) {
        unsafe { vst1q_f32(at, values) }
    }
    #[inline(always)]
    unsafe fn add_scaled(sums: float32x4_t, ints: int32x4_t, scales: float32x4_t, scale: *const f32) -> float32x4_t {
        unsafe { vfmaq_f32(sums, vcvtq_f32_s32(ints), vmulq_n_f32(scales, *scale)) }
    }
    #[inline(always)]
    unsafe fn add_offsets(sums: float32x4_t, offsets: float32x4_t, factor: f32) -> float32x4_t {
        unsafe { vfmaq_n_f32(sums, offsets, factor) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { simd::Neon::prefetch(at) }
    }

    #[inline]
    unsafe fn multiply<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out) {
        let table = &bits.table();
        // SAFETY: by the contract of the trait.
        unsafe { by_rows!(Self, VECTORS, rows, bits, (table, panel, left, out), 1 2 3 4) }
    }
}

/// Adds the products of each four neighbours. (The intrinsic, `vdotq_s32`, is not stable.)
///
/// # Safety
/// The processor has dot products.
#[inline(always)]
unsafe fn dot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes registers alone; the processor has the instruction by the contract of this function.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
