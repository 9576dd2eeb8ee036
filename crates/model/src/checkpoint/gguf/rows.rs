//! Weight matrices in a GGUF, row by row.

use std::ops::Range;

use crate::checkpoint::blocks::{Bits, Column};
use crate::checkpoint::layout::Layout;
use crate::checkpoint::matrix::Rows;
use crate::checkpoint::{FileDtype, Stored};

/// A matrix that is a tensor, or some of its rows.
#[derive(Debug)]
pub(crate) struct GgufRows {
    tensor: Stored,
    layout: Layout,
    /// The matrix's rows among the tensor's.
    rows: Range<usize>,
    /// Bytes of a row.
    size: usize,
    /// Whether nothing but the matrix is in the tensor.
    whole: bool,
}

impl GgufRows {
    /// A tensor `[rows, values]`.
    pub(crate) fn whole(tensor: Stored, layout: Layout, [rows, values]: [usize; 2]) -> Self {
        Self { whole: true, ..Self::part(tensor, layout, 0..rows, values) }
    }

    /// Rows of `values` of a tensor that has others as well.
    pub(super) fn part(tensor: Stored, layout: Layout, rows: Range<usize>, values: usize) -> Self {
        let size = tensor.dtype().bytes(values);
        Self { tensor, layout, rows, size, whole: false }
    }

    /// The bytes of row `row`.
    fn row(&self, row: usize) -> &[u8] {
        let row = self.layout.order.stored(self.rows.start + row);
        &self.tensor.bytes()[row * self.size..(row + 1) * self.size]
    }

    /// The bytes of all rows, in whichever order.
    fn bytes(&self) -> &[u8] {
        &self.tensor.bytes()[self.rows.start * self.size..self.rows.end * self.size]
    }
}

impl Rows for GgufRows {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        self.tensor.dtype().decode(self.row(row), values);
    }

    fn is_float(&self) -> bool {
        self.tensor.dtype().is_float()
    }

    fn bits(&self) -> Option<Bits> {
        let FileDtype::Block(format) = self.tensor.dtype() else { return None };
        format.bits(self.bytes())
    }

    fn blocks_of(&self, _: Bits, row: usize, _: &mut [f32], to: &mut Column) {
        if let FileDtype::Block(format) = self.tensor.dtype() {
            format.blocks_of(self.row(row), to);
        }
    }

    fn tensors(&self) -> Vec<&Stored> {
        if self.whole { vec![&self.tensor] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::checkpoint::{Checkpoint, blocks, fp4};
    use crate::device::{Device, Dtype};

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/gguf").join(name)
    }

    /// The bits of all matrices of a model's blocks, whose rows are compared as blocks and as values.
    fn bits_of(name: &str) -> Vec<Option<Bits>> {
        let checkpoint = Checkpoint::open(golden(name)).unwrap();
        let mut all = Vec::new();
        let (mut column, mut expected) = (Column::default(), Vec::new());
        for block in checkpoint.blocks().blocks() {
            let tensors = checkpoint.config().tensors_of(block).into_iter();
            // Of experts the tensor is there once, with the first one.
            let parts = tensors.flat_map(|(part, _)| {
                let count = part.expert.map_or(1, |(_, count)| count);
                (0..count).map(move |number| {
                    let mut part = part.clone();
                    part.expert = part.expert.map(|_| (number, count));
                    part
                })
            });
            for part in parts {
                let [rows, values] = part.shape;
                let matrix = checkpoint.matrix_of(&part).unwrap();
                all.push(matrix.bits());
                let Some(bits) = matrix.bits() else { continue };
                expected.resize(values, 0.0);
                for row in 0..rows {
                    matrix.blocks_of(row, &mut expected, &mut column);
                    matrix.decode_row(row, &mut expected);
                    for (at, expected) in expected.iter().enumerate() {
                        // Offsets, and scales made of two, are the nearest that f16 has.
                        let off =
                            column.offsets.get(at / blocks::BLOCK).map_or(0.0, |offset| offset.to_f32().abs() / 512.0);
                        let found = column.value(bits, at);
                        assert!(
                            (found - expected).abs() <= off,
                            "{name}: {}, row {row}: {found} {expected}",
                            part.tensor
                        );
                    }
                }
            }
        }
        all
    }

    #[test]
    fn what_weights_are_kept_in_is_how_they_lie() {
        for (name, dtype) in [
            ("llama.gguf", Dtype::F32),
            ("qwen2-q8_0.gguf", Dtype::Int8),
            // Its experts alone have four bits.
            ("gpt-oss.gguf", Dtype::Int8),
        ] {
            let checkpoint = Checkpoint::open(golden(name)).unwrap();
            assert_eq!(checkpoint.dtype_on(Dtype::Auto, &Device::cpu()).unwrap(), dtype, "{name}");
        }
    }

    #[test]
    fn rows_as_they_lie_are_the_rows() {
        let eight = bits_of("qwen2-q8_0.gguf");
        assert!(eight.len() > 6 && eight.iter().all(|bits| *bits == Some(Bits::Eight)), "{eight:?}");
        // Gate with up, and down, of four experts in two blocks.
        let experts = bits_of("gpt-oss.gguf");
        let doubled = experts.iter().filter(|bits| **bits == Some(Bits::Four(fp4::DOUBLED))).count();
        assert_eq!((doubled, experts.iter().flatten().count()), (16, 16), "{experts:?}");
        assert!(bits_of("llama.gguf").iter().all(Option::is_none));
    }
}
