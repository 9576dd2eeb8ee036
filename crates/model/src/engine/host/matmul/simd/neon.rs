//! NEON, which every processor with 64 bits of Arm's has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Simd;

/// Of its 32 registers 24 have sums.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Neon;

impl Simd for Neon {
    type Vector = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: by the contract of the trait, as everywhere below.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> float32x4_t {
        unsafe { vld1q_dup_f32(value) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // There is no stable intrinsic.
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn load(values: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(values) }
    }
    #[inline(always)]
    unsafe fn load_bf16(values: *const u16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(values)))) }
    }
    #[inline(always)]
    unsafe fn load_f16(values: *const u16) -> float32x4_t {
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(values))) }
    }
    #[inline(always)]
    unsafe fn load_i8(values: *const i8) -> float32x4_t {
        unsafe {
            let four = values.cast::<u32>().read_unaligned();
            let wide = vmovl_s8(vcreate_s8(u64::from(four)));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, values: float32x4_t) {
        unsafe { vst1q_f32(at, values) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
}
