//! Operations on host slices, for the CPU: vectorised by the compiler for the instruction set found at run time, spread
//! over rayon's threads, without temporaries.

use std::mem::MaybeUninit;

pub(crate) mod attention;
pub(crate) mod cached_attention;
pub(crate) mod matmul;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod simd;
pub(crate) mod swiglu;

/// Values that one task of an element-wise kernel takes: enough (some ten microseconds) to be worth handing to a thread.
const TASK: usize = 1 << 14;

/// Rows of this width that one task takes.
fn rows_of_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// A vector of `len` values whose memory is not cleared first: in a small pass that would cost as much as an operation.
///
/// # Safety
/// `fill` must write every value.
#[allow(unsafe_code)]
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: by the contract of this function.
    unsafe { values.set_len(len) };
    values
}
