//! A frozen weight as it lies in memory.

use half::{bf16, f16};
use rayon::prelude::*;

use super::PANEL;
use super::driver::{self, Direction, Operands};
use super::isa::Isa;
use super::micro::{Bf16, F16};
use super::pairs::{self, PairMatrix};
use crate::device::Dtype;

/// A weight `[depth, width]`, laid out in panels (see [`super`]), in the dtype it is served in.
#[derive(Debug)]
pub(crate) struct FrozenMatrix {
    depth: usize,
    width: usize,
    isa: Isa,
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<Bf16>),
    F16(Vec<F16>),
    /// bf16 for processors that multiply it as it is.
    Pairs(PairMatrix),
}

impl FrozenMatrix {
    /// Lays out a weight given as its columns: `column(n, out)` writes the `depth` values of column `n`. (A checkpoint's
    /// `[output, input]` matrix has the columns of `[input, output]` as its rows.)
    pub(crate) fn from_columns(shape: [usize; 2], dtype: Dtype, column: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        Self::for_isa(Isa::best(), shape, dtype, column)
    }

    /// [`Self::from_columns`], for an instruction set that the processor has.
    pub(super) fn for_isa(
        isa: Isa,
        [depth, width]: [usize; 2],
        dtype: Dtype,
        column: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let values = match dtype {
            Dtype::Bf16 if isa.multiplies_bf16() => Values::Pairs(PairMatrix::from_columns([depth, width], &column)),
            Dtype::Bf16 => Values::Bf16(pack(depth, width, &column, |v| Bf16(bf16::from_f32(v).to_bits()))),
            Dtype::F16 => Values::F16(pack(depth, width, &column, |v| F16(f16::from_f32(v).to_bits()))),
            Dtype::F32 | Dtype::Auto => Values::F32(pack(depth, width, &column, |v| v)),
        };
        Self { depth, width, isa, values }
    }

    /// `[depth, width]`
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.depth, self.width]
    }

    /// Bytes of the weights, without what fills up the last panel.
    pub(crate) fn bytes(&self) -> u64 {
        let size = match self.values {
            Values::F32(_) => 4,
            Values::Bf16(_) | Values::F16(_) | Values::Pairs(_) => 2,
        };
        (self.depth * self.width * size) as u64
    }

    /// `out (+)= x·W`: `[rows, depth]` to `[rows, width]`. Adds to `out` if `accumulate`.
    ///
    /// # Panics
    /// If the slices are not whole rows, as many in both.
    pub(crate) fn forward(&self, x: &[f32], out: &mut [f32], accumulate: bool) {
        self.product(Direction::Forward, x, out, accumulate);
    }

    /// `out (+)= dy·Wᵀ`: `[rows, width]` to `[rows, depth]`. Adds to `out` if `accumulate`.
    ///
    /// # Panics
    /// If the slices are not whole rows, as many in both.
    pub(crate) fn backward(&self, dy: &[f32], out: &mut [f32], accumulate: bool) {
        self.product(Direction::Backward, dy, out, accumulate);
    }

    pub(super) fn product(&self, direction: Direction, left: &[f32], out: &mut [f32], accumulate: bool) {
        let (depth, width, isa) = (self.depth, self.width, self.isa);
        match &self.values {
            Values::F32(weight) => {
                driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate })
            }
            Values::Bf16(weight) => {
                driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate });
            }
            Values::F16(weight) => {
                driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate })
            }
            Values::Pairs(weight) => pairs::run(isa, weight, direction, left, out, accumulate),
        }
    }
}

/// Panels of `[depth, PANEL]`, the last one filled up with zeros.
fn pack<E: Copy + Default + Send>(
    depth: usize,
    width: usize,
    column: &(impl Fn(usize, &mut [f32]) + Sync),
    convert: impl Fn(f32) -> E + Sync,
) -> Vec<E> {
    let mut packed = vec![E::default(); width.div_ceil(PANEL) * depth * PANEL];
    packed.par_chunks_mut((depth * PANEL).max(1)).enumerate().for_each_init(
        || vec![0.0; PANEL * depth],
        |columns, (panel, packed)| {
            let first = panel * PANEL;
            let count = PANEL.min(width - first);
            for (n, values) in columns.chunks_exact_mut(depth).take(count).enumerate() {
                column(first + n, values);
            }
            for (k, row) in packed.chunks_exact_mut(PANEL).enumerate() {
                for (n, value) in row.iter_mut().take(count).enumerate() {
                    *value = convert(columns[n * depth + k]);
                }
            }
        },
    );
    packed
}
