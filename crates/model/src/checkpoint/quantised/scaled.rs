//! Codes row after row with scales of blocks: what compressed-tensors and FP8 checkpoints have in common.

use super::super::matrix::Rows;
use super::super::stored::Stored;
use super::bits::{mask, word};
use super::groups::{Affine, Groups};

/// A matrix of codes and scales.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) codes: Codes,
    pub(super) scales: Stored,
    pub(super) zeros: Option<Zeros>,
    pub(super) blocks: Blocks,
}

/// Which scale is whose: scales are `[rows / height, columns]`.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Rows that have scales together.
    pub(super) height: usize,
    /// Scales of a row.
    pub(super) columns: usize,
    /// Values that have a scale together.
    pub(super) groups: Groups,
}

/// The codes of a matrix.
#[derive(Debug)]
pub(super) enum Codes {
    /// A number each: integers of a byte, or FP8.
    Numbers(Stored),
    /// Integers of so many bits, from the low ones of a word up, of which half of the range has been added.
    Packed { words: Stored, bits: u32 },
}

/// Zero points, one for each scale.
#[derive(Debug)]
pub(super) enum Zeros {
    Numbers(Stored),
    /// As the codes, but packed from row to row: `[rows / (32 / bits), columns]`.
    Packed {
        words: Stored,
        bits: u32,
    },
}

impl Zeros {
    /// The zero point of a block: of all that are `columns` in a row.
    fn of(&self, row: usize, column: usize, columns: usize) -> f32 {
        match self {
            Self::Numbers(numbers) => numbers.value(row * columns + column),
            Self::Packed { words, bits } => {
                let packed = (32 / bits) as usize;
                let word = word(words.words(), row / packed * columns + column);
                signed(word >> ((row % packed) as u32 * bits), *bits)
            }
        }
    }
}

/// The low bits of a word, as the signed number that half of the range was added to.
fn signed(word: u32, bits: u32) -> f32 {
    (word & mask(bits)) as f32 - (1_u32 << (bits - 1)) as f32
}

impl Rows for Scaled {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        match &self.codes {
            Codes::Numbers(numbers) => numbers.decode(row * values.len(), values),
            Codes::Packed { words, bits } => {
                let packed = (32 / bits) as usize;
                let of_row = values.len().div_ceil(packed);
                let words = &words.words()[row * of_row..(row + 1) * of_row];
                for (values, word) in values.chunks_mut(packed).zip(words) {
                    let mut word = u32::from_le_bytes(*word);
                    for value in values {
                        *value = signed(word, *bits);
                        word >>= bits;
                    }
                }
            }
        }
        let Blocks { height, columns, groups } = &self.blocks;
        let of = row / height;
        groups.apply(values, |column| Affine {
            zero: self.zeros.as_ref().map_or(0.0, |zeros| zeros.of(of, column, *columns)),
            scale: self.scales.value(of * columns + column),
        });
    }

    fn tensors(&self) -> Vec<&Stored> {
        let (Codes::Numbers(codes) | Codes::Packed { words: codes, .. }) = &self.codes;
        vec![codes, &self.scales]
    }
}
