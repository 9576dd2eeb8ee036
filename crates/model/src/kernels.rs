//! Operations on host slices, for the CPU: vectorised by the compiler for the instruction set found at run time, spread
//! over rayon's threads, without temporaries.

pub(crate) mod attention;
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

/// A vector of `len` values, every one of which `fill` writes.
pub(crate) fn filled(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill(&mut values);
    values
}
