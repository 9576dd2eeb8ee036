//! The operations of a block, each with its forward and its backward.
//!
//! Weights are frozen, so a backward gives input gradients only. On the CPU everything but the matrix products runs in
//! [`crate::kernels`]; elsewhere in burn's operations. Both compute the same and are compared in tests.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod swiglu;
