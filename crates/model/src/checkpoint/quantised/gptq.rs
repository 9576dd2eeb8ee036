//! GPTQ, as AutoGPTQ and GPTQModel save it: `qweight` has the codes of a column one under the other, from the low bits of a word up, and the
//! words `[values · bits / 32, rows]`; `qzeros` has zero points side by side, `[groups, rows · bits / 32]`; `scales` is `[groups, rows]`.
//! `g_idx` says the group of each value, which is not its place if columns were quantised in order of their activations (`desc_act`).

use super::super::blocks::{Bits, Column, EVEN};
use super::super::matrix::Rows;
use super::super::stored::Stored;
use super::super::{Checkpoint, CheckpointError, FLOATS, FileDtype};
use super::bits::{in_run, mask, widen_run, word};
use super::columns::Columns;
use super::groups::{self, Affine, Groups, fit_f16, fit_offsets};

/// Widths that are packed; those that do not divide 32 follow each other over the ends of words.
const WIDTHS: [u32; 4] = [2, 3, 4, 8];

/// Rows whose codes are turned at once.
const TOGETHER: usize = 16;

/// What the configuration says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    /// None: as the shape of the codes says.
    pub(super) bits: Option<u32>,
    /// Values of a group; none: as the shape of the scales says.
    pub(super) group: Option<usize>,
    pub(super) zeros_less_one: bool,
}

/// A matrix in GPTQ's layout.
#[derive(Debug)]
pub(super) struct Gptq {
    codes: Columns,
    zeros: Stored,
    scales: Stored,
    bits: u32,
    rows: usize,
    groups: Groups,
    zeros_less_one: bool,
    values: usize,
}

/// Finds the tensors of a module and checks them.
pub(super) fn locate(
    checkpoint: &Checkpoint,
    name: &str,
    [rows, values]: [usize; 2],
    said: Said,
) -> Result<Gptq, CheckpointError> {
    let named = |end: &str| format!("{name}.{end}");
    let wrong = |end: &str, reason: String| checkpoint.packed_wrongly(&named(end), reason);
    let bits = match said.bits {
        Some(bits) => bits,
        None => {
            let words = checkpoint.header(&named("qweight"))?.shape.first().copied();
            let fits = |bits: &u32| Some(values * *bits as usize) == words.and_then(|words| words.checked_mul(32));
            WIDTHS.into_iter().find(fits).ok_or_else(|| {
                wrong("qweight", format!("its words are of none of {WIDTHS:?} bits for each of {values} values"))
            })?
        }
    };
    let words_of = |numbers: usize| numbers * bits as usize / 32;
    if [rows, values].iter().any(|side| !(side * bits as usize).is_multiple_of(32)) {
        return Err(wrong("qweight", format!("{rows} rows of {values} values of {bits} bits are no whole words")));
    }
    let extents = [words_of(values), rows];
    let codes = checkpoint.locate_as(&named("qweight"), &extents, &[FileDtype::I32])?;
    let codes = Columns::new(codes, extents, TOGETHER);
    let scales = named("scales");
    let count = match said.group {
        Some(size) => values.div_ceil(size),
        None => match checkpoint.header(&scales)?.shape[..] {
            // As many as the tensor has, if they can be told apart; else it is misshapen.
            [count, _] if count > 0 && values.is_multiple_of(count) => count,
            _ => 1,
        },
    };
    let scales = checkpoint.locate_as(&scales, &[count, rows], FLOATS)?;
    let zeros = checkpoint.locate_as(&named("qzeros"), &[count, words_of(rows)], &[FileDtype::I32])?;
    let indices = named("g_idx");
    let size = said.group.unwrap_or(values / count);
    let groups = match checkpoint.has_tensor(&indices) {
        true => checkpoint.group_indices(&indices, values, [size, count])?,
        false => Groups::Even(size),
    };
    Ok(Gptq { codes, zeros, scales, bits, rows, groups, zeros_less_one: said.zeros_less_one, values })
}

impl Gptq {
    fn zero(&self, group: usize, row: usize) -> f32 {
        let words = self.zeros.words();
        let first = group * (self.rows * self.bits as usize / 32);
        let zero = match (self.zeros_less_one, 32_u32.is_multiple_of(self.bits)) {
            (false, _) => in_run(self.bits, row, |at| word(words, first + at)),
            // As GPTQModel does, and as it took the ones away: word by word, so that a zero point of none carries.
            (true, true) => {
                in_run(self.bits, row, |at| word(words, first + at).wrapping_add(u32::MAX / mask(self.bits)))
            }
            (true, false) => (in_run(self.bits, row, |at| word(words, first + at)) + 1) & mask(self.bits),
        };
        zero as f32
    }
}

impl Gptq {
    fn affine(&self, group: usize, row: usize) -> Affine {
        Affine { zero: self.zero(group, row), scale: self.scales.value(group * self.rows + row) }
    }
}

impl Rows for Gptq {
    fn decode_row(&self, row: usize, values: &mut [f32]) {
        self.codes.column(row, |words| widen_run(self.bits, values, |at| words[at]));
        self.groups.apply(values, |group| self.affine(group, row));
    }

    fn bits(&self) -> Option<Bits> {
        let (bits, zero) = match self.bits {
            4 => (Bits::Four(EVEN), 8.0),
            8 => (Bits::Eight, 128.0),
            _ => return None,
        };
        self.groups.whole_blocks(self.values)?;
        let scales = self.scales.values();
        let groups = scales.len() / self.rows.max(1);
        let symmetric = (0..groups).all(|group| (0..self.rows).all(|row| self.zero(group, row) == zero));
        match symmetric {
            true => fit_f16(&scales).then_some(bits),
            false => (self.bits == 4 && fit_offsets(&scales)).then_some(Bits::Offset),
        }
    }

    fn blocks_of(&self, bits: Bits, row: usize, values: &mut [f32], to: &mut Column) {
        let Some(size) = self.groups.whole_blocks(self.values) else { return };
        self.codes.column(row, |words| widen_run(self.bits, values, |at| words[at]));
        groups::blocks_of(bits, values, size, |group| self.affine(group, row), to);
    }

    fn tensors(&self) -> Vec<&Stored> {
        vec![self.codes.stored(), &self.zeros, &self.scales]
    }
}
