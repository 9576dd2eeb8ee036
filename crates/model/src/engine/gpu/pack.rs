//! From columns of weights to words as kernels read them.

use half::{bf16, f16};
use petals_kernels::Format;
use rayon::prelude::*;

use crate::checkpoint::blocks::{self, Bits, Column, WeightColumns};
use crate::device::Dtype;

/// How weights of a dtype that lie as `lie` are packed, and what four bits stand for.
pub(super) fn format_of(dtype: Dtype, lie: Option<Bits>) -> (Format, Option<Bits>) {
    let in_blocks = |bits: Bits| {
        let bits = bits.kept(lie);
        let format = match bits {
            Bits::Eight => Format::Int8,
            Bits::Four(_) => Format::Table,
            Bits::Offset => Format::Offset,
        };
        (format, Some(bits))
    };
    match dtype {
        Dtype::Auto | Dtype::F32 => (Format::F32, None),
        Dtype::Bf16 => (Format::Bf16, None),
        Dtype::F16 => (Format::F16, None),
        Dtype::Int8 => in_blocks(Bits::Eight),
        Dtype::Int4 => in_blocks(Bits::Offset),
    }
}

/// Words of some rows of a weight: of their values, of their scales, and of what their scales and offsets are steps of.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) words: Vec<u32>,
    pub(super) scales: Vec<u32>,
    pub(super) steps: Vec<f32>,
}

/// Packs the rows `rows` (the columns of `from`), `inputs` values each.
pub(super) fn pack(
    from: &impl WeightColumns,
    rows: std::ops::Range<usize>,
    inputs: usize,
    (format, bits): (Format, Option<Bits>),
) -> Packed {
    let (of_row, scales_of_row) = (format.words_of_row(inputs), format.scale_words_of_row(inputs));
    let mut packed =
        Packed { words: vec![0; rows.len() * of_row], scales: vec![0; rows.len() * scales_of_row], steps: Vec::new() };
    let parts = packed.words.par_chunks_mut(of_row.max(1));
    let scratch = || (vec![0.0; inputs], Column::default());
    let Some(bits) = bits else {
        parts.zip(rows).for_each_init(scratch, |(values, _), (to, row)| {
            from.column(row, values);
            plain(format, values, to);
        });
        return packed;
    };
    let steps = parts.zip(packed.scales.par_chunks_mut(scales_of_row.max(1))).zip(rows);
    packed.steps = steps
        .map_init(scratch, |(values, column), ((to, scales), row)| {
            blocks::blocks_of(from, bits, row, values, column);
            to.iter_mut().zip(column.values.chunks(format.of_word())).for_each(|(to, part)| *to = word(part));
            let [of_scale, of_offset] = column.steps();
            for (block, scale) in column.scales.iter().enumerate() {
                let half = match column.offsets.get(block) {
                    None => scale.to_bits(),
                    Some(offset) => {
                        u16::from_le_bytes([blocks::in_steps(*scale, of_scale), blocks::in_steps(*offset, of_offset)])
                    }
                };
                scales[block / 2] |= u32::from(half) << (16 * (block % 2));
            }
            // Offsets are never above zero.
            [of_scale, -of_offset]
        })
        .flatten_iter()
        .collect();
    if bits != Bits::Offset {
        packed.steps.clear();
    }
    packed
}

/// Values of 32 or 16 bits each.
fn plain(format: Format, values: &[f32], to: &mut [u32]) {
    let halves = |convert: fn(f32) -> u16, to: &mut [u32]| {
        for (to, pair) in to.iter_mut().zip(values.chunks(2)) {
            let high = pair.get(1).map_or(0, |&value| convert(value));
            *to = u32::from(convert(pair[0])) | u32::from(high) << 16;
        }
    };
    match format {
        Format::Bf16 => halves(|value| bf16::from_f32(value).to_bits(), to),
        Format::F16 => halves(|value| f16::from_f32(value).to_bits(), to),
        _ => to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_bits()),
    }
}

/// Neighbours in a word, each with as many bits as make it whole.
fn word(weights: &[i8]) -> u32 {
    let bits = 32 / weights.len() as u32;
    let mask = u32::MAX >> (32 - bits);
    weights.iter().rev().fold(0u32, |word, &weight| word << bits | (weight as u32 & mask))
}
