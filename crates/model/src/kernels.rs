//! Operations on host slices, for the CPU: vectorised by the compiler for the instruction set found at run time, spread
//! over rayon's threads, without temporaries.

pub(crate) mod attention;
mod gemm;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod simd;
pub(crate) mod swiglu;
