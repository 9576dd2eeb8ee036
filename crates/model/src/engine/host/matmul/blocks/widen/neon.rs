//! Four bits widened with NEON.

use std::arch::aarch64::*;

use super::Line;
use crate::checkpoint::blocks::Table;

/// What the lower and the upper halves of a line's bytes stand for.
#[inline(always)]
pub(super) fn look_up(line: &Line, table: &Table, [low, high]: &mut [Line; 2]) {
    let parts = line.0.as_chunks::<16>().0.iter();
    let to = low.0.as_chunks_mut::<16>().0.iter_mut().zip(high.0.as_chunks_mut::<16>().0);
    // SAFETY: every processor of the architecture has NEON; a table has sixteen bytes, as all of the parts do.
    unsafe {
        let (table, half) = (vld1q_u8(table.as_ptr().cast()), vdupq_n_u8(15));
        for (bytes, (low, high)) in parts.zip(to) {
            let bytes = vld1q_u8(bytes.as_ptr());
            vst1q_u8(low.as_mut_ptr(), vqtbl1q_u8(table, vandq_u8(bytes, half)));
            vst1q_u8(high.as_mut_ptr(), vqtbl1q_u8(table, vshrq_n_u8::<4>(bytes)));
        }
    }
}
