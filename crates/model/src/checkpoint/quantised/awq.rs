//! AWQ, as AutoAWQ saves it for its GEMM: four bits, the codes of eight neighbouring rows in a word, interleaved: `qweight` is
//! `[values, rows / 8]`, `qzeros` `[groups, rows / 8]`, `scales` `[groups, rows]`.

use super::super::blocks::{BLOCK, Bits, Column};
use super::super::matrix::Rows;
use super::super::stored::Stored;
use super::super::{Checkpoint, CheckpointError, FLOATS, FileDtype};
use super::bits::{mask, word};
use super::columns::Columns;
use super::groups::{self, Affine, Groups, fit_offsets};

const BITS: u32 = 4;
/// Rows of a word.
const PACKED: usize = 8;
/// Where in a word the code of each of its rows is: rows 0, 2, 4, 6, 1, 3, 5, 7 from the low bits up.
const PLACES: [u32; PACKED] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Columns of words that are turned at once, each of [`PACKED`] rows.
const TOGETHER: usize = 4;

/// A matrix in AWQ's layout.
#[derive(Debug)]
pub(super) struct Awq {
    codes: Columns,
    zeros: Stored,
    scales: Stored,
    rows: usize,
    groups: Groups,
}

/// Finds the tensors of a module and checks them. `group` is how many values have a scale together, none: all of a row.
pub(super) fn locate(
    checkpoint: &Checkpoint,
    name: &str,
    [rows, values]: [usize; 2],
    group: Option<usize>,
) -> Result<Awq, CheckpointError> {
    let named = |end: &str| format!("{name}.{end}");
    let size = group.unwrap_or(values);
    if !rows.is_multiple_of(PACKED) || !values.is_multiple_of(size) {
        let reason =
            format!("{rows} rows of {values} values are no whole words of {PACKED} rows and groups of {size} values");
        return Err(checkpoint.packed_wrongly(&named("qweight"), reason));
    }
    let (count, words) = (values / size, rows / PACKED);
    let codes = checkpoint.locate_as(&named("qweight"), &[values, words], &[FileDtype::I32])?;
    let codes = Columns::new(codes, [values, words], TOGETHER);
    let zeros = checkpoint.locate_as(&named("qzeros"), &[count, words], &[FileDtype::I32])?;
    let scales = checkpoint.locate_as(&named("scales"), &[count, rows], FLOATS)?;
    Ok(Awq { codes, zeros, scales, rows, groups: Groups::Even(size) })
}

impl Awq {
    /// The codes of a row.
    fn codes_of(&self, row: usize, values: &mut [f32]) {
        self.codes.column(row / PACKED, |words| {
            values.iter_mut().zip(words).for_each(|(value, word)| *value = code(*word, row));
        });
    }

    fn affine(&self, group: usize, row: usize) -> Affine {
        let word = word(self.zeros.words(), group * (self.rows / PACKED) + row / PACKED);
        Affine { zero: code(word, row), scale: self.scales.value(group * self.rows + row) }
    }
}

/// The code of row `row` in its word.
fn code(word: u32, row: usize) -> f32 {
    (word >> (PLACES[row % PACKED] * BITS) & mask(BITS)) as f32
}

impl Rows for Awq {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        self.codes_of(row, values);
        self.groups.apply(values, |group| self.affine(group, row));
    }

    fn bits(&self) -> Option<Bits> {
        let whole = matches!(self.groups, Groups::Even(size) if size.is_multiple_of(BLOCK));
        (whole && fit_offsets(&self.scales.values())).then_some(Bits::Offset)
    }

    fn blocks_of(&self, bits: Bits, row: usize, values: &mut [f32], to: &mut Column) {
        let Some(size) = self.groups.whole_blocks(values.len()) else { return };
        self.codes_of(row, values);
        groups::blocks_of(bits, values, size, |group| self.affine(group, row), to);
    }

    fn tensors(&self) -> Vec<&Stored> {
        vec![self.codes.stored(), &self.zeros, &self.scales]
    }
}
