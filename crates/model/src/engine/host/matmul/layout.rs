//! A frozen weight as it lies in memory.

use std::mem::MaybeUninit;

use half::f16;
use rayon::prelude::*;

use super::PANEL;
use super::aligned::Aligned;
use super::blocks::{BlockMatrix, Dots};
use super::driver::{self, Direction, Operands, PlainPanels};
use super::isa::Isa;
use super::micro::{Bf16, F16};
use super::pairs::{self, PairMatrix, round_to_bf16};
use crate::checkpoint::blocks::{Bits, WeightColumns};
use crate::device::Dtype;
use crate::engine::host::filled;

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
    F32(Aligned<f32>),
    Bf16(Aligned<Bf16>),
    F16(Aligned<F16>),
    /// bf16 for processors that multiply it as it is.
    Pairs(PairMatrix),
    /// Of eight or four bits, and what multiplies them as integers.
    Blocks(BlockMatrix, Dots),
}

impl FrozenMatrix {
    /// [`Self::from_columns`], for an instruction set that the processor has.
    pub(super) fn for_isa(isa: Isa, [depth, width]: [usize; 2], dtype: Dtype, columns: &impl WeightColumns) -> Self {
        let values = match dtype {
            Dtype::Bf16 if isa.multiplies_bf16() => Values::Pairs(PairMatrix::from_columns([depth, width], columns)),
            Dtype::Bf16 => Values::Bf16(pack(depth, width, columns, |v| Bf16(round_to_bf16(v)))),
            Dtype::F16 => Values::F16(pack(depth, width, columns, |v| F16(f16::from_f32(v).to_bits()))),
            Dtype::Int8 | Dtype::Int4 => {
                // Found out here: within a product other tasks of the pool could ask for it before it is known.
                let (dots, bits) = (Dots::best(), Bits::of(dtype).unwrap_or(Bits::Eight));
                Values::Blocks(BlockMatrix::from_columns([depth, width], bits, columns), dots)
            }
            Dtype::F32 | Dtype::Auto => Values::F32(pack(depth, width, columns, |v| v)),
        };
        Self { depth, width, isa, values }
    }

    /// `[depth, width]`
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.depth, self.width]
    }

    /// Bytes of the weights, without what fills up the last panel.
    pub(crate) fn bytes(&self) -> u64 {
        let size = match &self.values {
            Values::F32(_) => 4,
            Values::Bf16(_) | Values::F16(_) | Values::Pairs(_) => 2,
            Values::Blocks(blocks, _) => return blocks.bytes(),
        };
        (self.depth * self.width * size) as u64
    }

    /// `x·W`: `[rows, depth]` to `[rows, width]`.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.product_alone(Direction::Forward, x)
    }

    /// Adds `x·W` to `out`.
    ///
    /// # Panics
    /// If the slices are not whole rows, as many in both.
    pub(crate) fn forward_onto(&self, x: &[f32], out: &mut [f32]) {
        self.product_onto(Direction::Forward, x, out);
    }

    /// `dy·Wᵀ`: `[rows, width]` to `[rows, depth]`.
    ///
    /// # Panics
    /// If `dy` is not whole rows.
    pub(crate) fn backward(&self, dy: &[f32]) -> Vec<f32> {
        self.product_alone(Direction::Backward, dy)
    }

    /// Adds `dy·Wᵀ` to `out`.
    ///
    /// # Panics
    /// If the slices are not whole rows, as many in both.
    pub(crate) fn backward_onto(&self, dy: &[f32], out: &mut [f32]) {
        self.product_onto(Direction::Backward, dy, out);
    }

    #[allow(unsafe_code)]
    pub(super) fn product_alone(&self, direction: Direction, left: &[f32]) -> Vec<f32> {
        let (inner, columns) = direction.extents(self.depth, self.width);
        let rows = left.len() / inner.max(1);
        // SAFETY: a product writes all of its output.
        unsafe { filled(rows * columns, |out| self.product(direction, left, out, false)) }
    }

    #[allow(unsafe_code)]
    pub(super) fn product_onto(&self, direction: Direction, left: &[f32], out: &mut [f32]) {
        // SAFETY: a product writes nothing but whole values.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
        self.product(direction, left, out, true);
    }

    fn product(&self, direction: Direction, left: &[f32], out: &mut [MaybeUninit<f32>], accumulate: bool) {
        let (depth, width, isa) = (self.depth, self.width, self.isa);
        match &self.values {
            Values::F32(values) => {
                let weight = &PlainPanels { values, depth };
                driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate });
            }
            Values::Bf16(values) => {
                let weight = &PlainPanels { values, depth };
                driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate });
            }
            Values::F16(values) => {
                let weight = &PlainPanels { values, depth };
                driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate });
            }
            Values::Pairs(weight) => pairs::run(isa, weight, direction, left, out, accumulate),
            Values::Blocks(weight, dots) => {
                if direction == Direction::Forward && left.len() <= dots.most_rows(isa) * depth {
                    dots.product(weight, left, out, accumulate);
                } else if isa.multiplies_bf16() {
                    pairs::run(isa, weight, direction, left, out, accumulate);
                } else {
                    driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate });
                }
            }
        }
    }
}

/// Panels of `[depth, PANEL]`, the last one filled up with zeros.
fn pack<E: Copy + Default + Send>(
    depth: usize,
    width: usize,
    from: &impl WeightColumns,
    convert: impl Fn(f32) -> E + Sync,
) -> Aligned<E> {
    let mut packed = Aligned::new(width.div_ceil(PANEL) * depth * PANEL);
    packed.par_chunks_mut((depth * PANEL).max(1)).enumerate().for_each_init(
        || vec![0.0; PANEL * depth],
        |columns, (panel, packed)| {
            let first = panel * PANEL;
            let count = PANEL.min(width - first);
            for (n, values) in columns.chunks_exact_mut(depth).take(count).enumerate() {
                from.column(first + n, values);
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
