//! Weights packed in words, and what they stand for.

use cubecl::prelude::*;

/// How weights are packed in words of 32 bits, neighbours of a row beside each other, the first in the lowest bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One in a word.
    F32,
    /// Two in a word.
    Bf16,
    /// Two in a word, IEEE 754 half precision.
    F16,
    /// Four in a word; 32 have a scale together, an f16, two of which are in a word.
    Int8,
    /// Eight in a word: numbers of entries of a table of sixteen, with scales as [`Format::Int8`].
    Table,
    /// Eight in a word: numbers from 0 to 15. 32 have sixteen bits together: how many steps of their row the scale is, in the low byte, and the offset.
    Offset,
}

/// Neighbours that have a scale together.
pub(crate) const BLOCK: usize = 32;

impl Format {
    /// Weights in a word.
    pub fn of_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 => 4,
            Self::Table | Self::Offset => 8,
        }
    }

    /// Whether weights have scales.
    pub fn is_scaled(self) -> bool {
        matches!(self, Self::Int8 | Self::Table | Self::Offset)
    }

    /// Words of a row of `inputs` weights.
    pub fn words_of_row(self, inputs: usize) -> usize {
        // Scales are those of whole blocks.
        if self.is_scaled() { inputs.div_ceil(BLOCK) * BLOCK / self.of_word() } else { inputs.div_ceil(self.of_word()) }
    }

    /// Words of the scales of a row.
    pub fn scale_words_of_row(self, inputs: usize) -> usize {
        if self.is_scaled() { inputs.div_ceil(BLOCK).div_ceil(2) } else { 0 }
    }
}

/// What the bits of an f16 stand for. A subnormal one, which the scale of a block of tiny weights is, needs its own way: the f32 that a shift
/// makes of it is subnormal too, and GPUs may take it for zero.
#[cube]
pub(crate) fn half_to_float(bits: u32) -> f32 {
    let sign = (bits & 0x8000u32) << 16u32;
    let magnitude = (bits & 0x7fffu32) << 13u32;
    let normal = magnitude + 0x3800_0000u32;
    // With an exponent of its own the fraction is above 2^-14 by what it stands for.
    let small = u32::reinterpret(f32::reinterpret(magnitude + 0x3880_0000u32) - f32::new(6.103_515_6e-5));
    f32::reinterpret(select(magnitude < 0x0080_0000u32, small, normal) | sign)
}

/// A whole number below 2^23, as a float: what is put into the low bits of 2^23 is added to it.
#[cube]
pub(crate) fn whole_to_float(number: u32) -> f32 {
    f32::reinterpret(number | 0x4b00_0000u32) - 8_388_608.0
}

/// Weight `part` of a word, in units of its scale.
#[cube]
pub(crate) fn weight_of_word(
    word: u32,
    table: &SharedMemory<f32>,
    #[comptime] part: usize,
    #[comptime] format: Format,
) -> f32 {
    if comptime!(format == Format::F32) {
        f32::reinterpret(word)
    } else if comptime!(format == Format::Bf16 && part == 0) {
        f32::reinterpret(word << 16u32)
    } else if comptime!(format == Format::Bf16) {
        f32::reinterpret(word & 0xffff_0000u32)
    } else if comptime!(format == Format::F16) {
        half_to_float((word >> comptime!(16 * part as u32)) & 0xffffu32)
    } else if comptime!(format == Format::Int8) {
        // The flipped sign makes -128..127 of 0..255.
        f32::reinterpret((((word ^ 0x8080_8080u32) >> comptime!(8 * part as u32)) & 0xffu32) | 0x4b00_0000u32)
            - 8_388_736.0
    } else if comptime!(format == Format::Offset) {
        whole_to_float((word >> comptime!(4 * part as u32)) & 0xfu32)
    } else {
        table[((word >> comptime!(4 * part as u32)) & 0xfu32) as usize]
    }
}

/// What a block of row `row` is multiplied by.
#[cube]
pub(crate) fn scale_of(
    scales: &Array<u32>,
    steps: &Array<f32>,
    row: usize,
    block: usize,
    words_of_row: usize,
    #[comptime] format: Format,
) -> f32 {
    if comptime!(format == Format::Offset) {
        whole_to_float(half_of(scales, row, block, words_of_row) & 0xffu32) * steps[2 * row]
    } else if comptime!(format.is_scaled()) {
        half_to_float(half_of(scales, row, block, words_of_row))
    } else {
        f32::new(1.0)
    }
}

/// What is added to the weights of a block of row `row`.
#[cube]
pub(crate) fn offset_of(
    scales: &Array<u32>,
    steps: &Array<f32>,
    row: usize,
    block: usize,
    words_of_row: usize,
    #[comptime] format: Format,
) -> f32 {
    if comptime!(format == Format::Offset) {
        whole_to_float(half_of(scales, row, block, words_of_row) >> 8u32) * steps[2 * row + 1]
    } else {
        f32::new(0.0)
    }
}

#[cube]
fn half_of(scales: &Array<u32>, row: usize, block: usize, words_of_row: usize) -> u32 {
    let pair = scales[row * words_of_row + block / 2];
    select(block % 2 == 0, pair & 0xffffu32, pair >> 16u32)
}
