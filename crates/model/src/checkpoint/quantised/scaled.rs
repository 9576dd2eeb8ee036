//! Codes row after row with scales of blocks: what compressed-tensors and FP8 checkpoints have in common.

use super::super::FileDtype;
use super::super::blocks::{Bits, Column, EVEN};
use super::super::matrix::Rows;
use super::super::stored::Stored;
use super::bits::{mask, word};
use super::groups::{self, Affine, Groups, fit_f16, fit_offsets};

/// A matrix of codes and scales.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) codes: Codes,
    pub(super) scales: Stored,
    pub(super) zeros: Option<Zeros>,
    pub(super) blocks: Blocks,
    /// Values of a row.
    pub(super) values: usize,
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

impl Codes {
    /// Of how many bits they are, if engines have such blocks: with offsets, if there are zero points.
    fn bits(&self, zeros: Option<&Zeros>) -> Option<Bits> {
        match (self, zeros) {
            (Self::Packed { bits: 4, .. }, None) => Some(Bits::Four(EVEN)),
            (Self::Packed { bits: 4, .. }, Some(zeros)) => zeros.are_codes().then_some(Bits::Offset),
            (Self::Packed { bits: 8, .. }, None) => Some(Bits::Eight),
            (Self::Numbers(numbers), None) if numbers.dtype() == FileDtype::I8 => Some(Bits::Eight),
            _ => None,
        }
    }
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
    /// Whether all of them are numbers that four bits hold.
    fn are_codes(&self) -> bool {
        match self {
            Self::Packed { bits, .. } => *bits == 4,
            Self::Numbers(numbers) => {
                numbers.values().iter().all(|zero| (-HALF_RANGE..HALF_RANGE).contains(zero) && zero.fract() == 0.0)
            }
        }
    }

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

/// What has been added to codes of four bits.
const HALF_RANGE: f32 = 8.0;

/// The low bits of a word, as the signed number that half of the range was added to.
fn signed(word: u32, bits: u32) -> f32 {
    (word & mask(bits)) as f32 - (1_u32 << (bits - 1)) as f32
}

impl Scaled {
    /// That of block `column` of those that are `columns` in a row.
    fn affine(&self, row: usize, column: usize, columns: usize) -> Affine {
        Affine {
            zero: self.zeros.as_ref().map_or(0.0, |zeros| zeros.of(row, column, columns)),
            scale: self.scales.value(row * columns + column),
        }
    }

    /// The codes of a row, without their offsets.
    fn codes_of(&self, row: usize, values: &mut [f32]) {
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
    }
}

impl Rows for Scaled {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        self.codes_of(row, values);
        let Blocks { height, columns, groups } = &self.blocks;
        let of = row / height;
        groups.apply(values, |column| self.affine(of, column, *columns));
    }

    fn bits(&self) -> Option<Bits> {
        self.blocks.groups.whole_blocks(self.values)?;
        let fit = if self.zeros.is_some() { fit_offsets } else { fit_f16 };
        self.codes.bits(self.zeros.as_ref()).filter(|_| fit(&self.scales.values()))
    }

    fn blocks_of(&self, bits: Bits, row: usize, values: &mut [f32], to: &mut Column) {
        let Some(size) = self.blocks.groups.whole_blocks(self.values) else { return };
        self.codes_of(row, values);
        let Blocks { height, columns, .. } = &self.blocks;
        // The numbers of blocks with offsets begin at zero.
        let shift = if bits == Bits::Offset { HALF_RANGE } else { 0.0 };
        values.iter_mut().for_each(|code| *code += shift);
        let of = |group| {
            let Affine { zero, scale } = self.affine(row / height, group, *columns);
            Affine { zero: zero + shift, scale }
        };
        groups::blocks_of(bits, values, size, of, to);
    }

    fn tensors(&self) -> Vec<&Stored> {
        let (Codes::Numbers(codes) | Codes::Packed { words: codes, .. }) = &self.codes;
        vec![codes, &self.scales]
    }
}
