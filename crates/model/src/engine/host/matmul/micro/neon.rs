//! NEON's micro-kernels.

use std::arch::aarch64::*;

use super::{Left, Micro, Out, PANEL, Right, Stored, Tile, block, is_strip};
use crate::engine::host::matmul::simd::{Neon, Simd};

impl Micro for Neon {
    #[inline]
    unsafe fn multiply<E: Stored>([rows, _]: [usize; 2], depth: usize, left: Left, right: Right<E>, out: Out) {
        // SAFETY: by the contract of the trait.
        unsafe {
            if is_strip::<Self, E>(rows, left, right) {
                block::<Self, E, 6, 1, 4, true>(depth, left, right, out)
            } else {
                by_rows!(Self, E, 1, 4, rows, (depth, left, right, out), 1 2 3 4 5 6)
            }
        }
    }

    /// In squares of four by four values.
    unsafe fn turn<E: Stored>(rows: &[E], stride: usize, height: usize, out: &mut Tile) {
        for k in (0..PANEL).step_by(Self::LANES) {
            for n in (0..PANEL).step_by(Self::LANES) {
                // SAFETY: rows that the tile has are PANEL values long; rows of `out` as well.
                unsafe {
                    let mut r = [Self::zero(); 4];
                    for (i, row) in r.iter_mut().enumerate().take(height.saturating_sub(k)) {
                        *row = E::load::<Self>(rows[(k + i) * stride..][..PANEL][n..].as_ptr());
                    }
                    for (i, column) in turned(r).into_iter().enumerate() {
                        Self::store(out[n + i][k..].as_mut_ptr(), column);
                    }
                }
            }
        }
    }
}

/// The columns of a square.
#[inline(always)]
fn turned([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: every processor of the architecture has NEON.
    unsafe {
        let even = [vtrn1q_f32(a, b), vtrn1q_f32(c, d)].map(|v| vreinterpretq_f64_f32(v));
        let odd = [vtrn2q_f32(a, b), vtrn2q_f32(c, d)].map(|v| vreinterpretq_f64_f32(v));
        let columns = [
            vtrn1q_f64(even[0], even[1]),
            vtrn1q_f64(odd[0], odd[1]),
            vtrn2q_f64(even[0], even[1]),
            vtrn2q_f64(odd[0], odd[1]),
        ];
        columns.map(|v| vreinterpretq_f32_f64(v))
    }
}
