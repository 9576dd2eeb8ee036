//! Weights in MXFP4 (OCP Microscaling Formats 1.0), as gpt-oss's experts come: for each 32 values 16 bytes with two of them each, the lower half
//! first, and a power of two (`convert_moe_packed_tensors` of transformers).

use std::ops::Range;

use super::super::blocks::{BLOCK, Bits, Column};
use super::super::fp4;
use super::super::matrix::Rows;
use super::super::stored::Stored;
use super::super::{Checkpoint, CheckpointError, FileDtype};

/// One expert's matrix in tensors `[experts, rows, values]`.
#[derive(Debug)]
pub(super) struct Mxfp4 {
    blocks: Stored,
    scales: Stored,
    /// The expert's first row among those of all.
    first: usize,
    /// Where its own scales are among those of all.
    own: Range<usize>,
}

/// Whether the weight of this name is there in MXFP4.
pub(super) fn is_there(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.has_tensor(&format!("{name}_blocks"))
}

/// Finds the matrix of one of `[experts, rows, values]`.
pub(super) fn locate(
    checkpoint: &Checkpoint,
    name: &str,
    [experts, rows, values]: [usize; 3],
    expert: usize,
) -> Result<Mxfp4, CheckpointError> {
    let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
    if !values.is_multiple_of(BLOCK) {
        let reason = format!("rows of {values} values are no whole blocks of {BLOCK}");
        return Err(checkpoint.packed_wrongly(&blocks, reason));
    }
    let of_row = values / BLOCK;
    let blocks = checkpoint.locate_as(&blocks, &[experts, rows, of_row, BLOCK / 2], &[FileDtype::U8])?;
    let scales = checkpoint.locate_as(&scales, &[experts, rows, of_row], &[FileDtype::U8])?;
    let first = expert * rows;
    Ok(Mxfp4 { blocks, scales, first, own: first * of_row..(first + rows) * of_row })
}

impl Rows for Mxfp4 {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        let first = (self.first + row) * (values.len() / BLOCK);
        let (blocks, scales) = (&self.blocks.bytes()[first * BLOCK / 2..], &self.scales.bytes()[first..]);
        for ((values, packed), scale) in values.chunks_exact_mut(BLOCK).zip(blocks.chunks_exact(BLOCK / 2)).zip(scales)
        {
            // 2^(scale - 127); the least ones are no normal numbers.
            let scale = f32::from_bits(u32::from(*scale) << 23).max(f32::from_bits(1 << 22));
            for (pair, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
                *pair = [byte & 15, byte >> 4].map(|bits| fp4::VALUES[usize::from(bits)] * scale);
            }
        }
    }

    fn bits(&self) -> Option<Bits> {
        let fit = self.scales.bytes()[self.own.clone()].iter().all(|scale| fp4::half(*scale).is_some());
        fit.then_some(Bits::Four(fp4::DOUBLED))
    }

    fn blocks_of(&self, _: Bits, row: usize, values: &mut [f32], to: &mut Column) {
        let of_row = values.len() / BLOCK;
        let first = (self.first + row) * of_row;
        let scales = &self.scales.bytes()[first..first + of_row];
        let packed = &self.blocks.bytes()[first * BLOCK / 2..(first + of_row) * BLOCK / 2];
        to.clear();
        to.scales.extend(scales.iter().filter_map(|scale| fp4::half(*scale)));
        to.values.extend(packed.iter().flat_map(|byte| [byte & 15, byte >> 4].map(|number| number as i8)));
    }

    /// None: both hold the other experts as well, whose turn comes next.
    fn tensors(&self) -> Vec<&Stored> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::fixture::{self, config};

    #[test]
    fn values_are_those_of_transformers() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/data/mxfp4.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        let numbers = |name: &str| -> Vec<u32> {
            golden[name].as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
        };
        let bytes = |name: &str| numbers(name).into_iter().map(|byte| byte as u8).collect::<Vec<u8>>();
        let (shape, bits) = (numbers("shape"), numbers("bits"));
        let [experts, rows, values] = [0, 1, 2].map(|n| shape[n] as usize);
        let tensors = [
            ("w_blocks", vec![experts, rows, values / 32, 16], bytes("blocks")),
            ("w_scales", vec![experts, rows, values / 32], bytes("scales")),
        ];
        let tensors = tensors.map(|(name, shape, bytes)| (name.to_owned(), ("U8".to_owned(), shape, bytes)));
        let dir = fixture::raw_model(&config(), &tensors.into());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert!(is_there(&checkpoint, "w") && !is_there(&checkpoint, "v"));
        for (number, expected) in bits.chunks_exact(values).enumerate() {
            let matrix = locate(&checkpoint, "w", [experts, rows, values], number / rows).unwrap();
            let mut row = vec![0.0; values];
            matrix.decode_row(number % rows, &mut row);
            let row: Vec<u32> = row.into_iter().map(f32::to_bits).collect();
            assert_eq!(row, expected, "row {number}");
        }
        let refusal = |values| locate(&checkpoint, "w", [experts, rows, values], 0).unwrap_err().to_string();
        assert!(refusal(values + 8).contains("no whole blocks"), "{}", refusal(values + 8));
        assert!(refusal(2 * values).contains("`w_blocks`"), "{}", refusal(2 * values));
    }
}
