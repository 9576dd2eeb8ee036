//! Products with frozen weights on the CPU.
//!
//! A weight `W` `[depth, width]` is laid out once, when it is loaded, for the product that reads it most: in panels of
//! [`PANEL`] columns, `[panel][depth][PANEL]`, so that a forward `x·W` reads memory from front to back and packs nothing. A
//! backward `dy·Wᵀ` reads the same bytes: tiles of `PANEL x PANEL` are turned into a small buffer on the way, which costs one
//! move for as many products as there are rows. Half-precision weights stay as they are in memory and are widened in
//! registers; sums are f32 always.
//!
//! The micro-kernels are written once over the vector types of [`simd`] and compiled for each instruction set; the best that the
//! processor has is chosen at run time ([`trial`]). Processors that multiply bf16 by bf16 have a layout and kernels of their own
//! ([`pairs`]).

mod aligned;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod amx_permission;
mod blocks;
mod driver;
mod isa;
mod layout;
#[allow(unsafe_code)]
mod micro;
#[allow(unsafe_code)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only x86 has kernels for it; the rest is tested everywhere")
)]
mod pairs;
#[allow(unsafe_code)]
mod simd;
#[allow(unsafe_code)]
mod small;
mod trial;

pub(crate) use layout::FrozenMatrix;
pub(super) use micro::{Bf16, F16, Stored};
pub(super) use pairs::round_to_bf16;
pub(crate) use small::{Matrix, product};

/// Columns of a panel: one AVX-512 register, two of AVX2.
const PANEL: usize = 16;

#[cfg(test)]
mod tests;
