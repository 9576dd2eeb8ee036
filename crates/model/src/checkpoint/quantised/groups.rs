//! Groups of a row's values that have a scale and a zero point together.

use half::f16;

use super::super::blocks::{BLOCK, Bits, Column};
use super::super::{Checkpoint, CheckpointError, FileDtype};

/// Which group each value of a row belongs to.
#[derive(Debug)]
pub(super) enum Groups {
    /// Groups of so many values, one after the other; the last one may be shorter.
    Even(usize),
    /// The group of each value, and how many there are.
    Listed(Vec<u32>, usize),
}

/// `value = (code - zero) * scale`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine {
    pub(super) zero: f32,
    pub(super) scale: f32,
}

impl Affine {
    fn apply(self, code: &mut f32) {
        *code = (*code - self.zero) * self.scale;
    }
}

impl Groups {
    /// Turns the codes of a row into values. `of` is asked once for each group.
    pub(super) fn apply(&self, row: &mut [f32], of: impl Fn(usize) -> Affine) {
        match self {
            Self::Even(size) => {
                for (group, codes) in row.chunks_mut((*size).max(1)).enumerate() {
                    let affine = of(group);
                    codes.iter_mut().for_each(|code| affine.apply(code));
                }
            }
            Self::Listed(groups, count) => {
                let affine: Vec<Affine> = (0..*count).map(of).collect();
                row.iter_mut().zip(groups).for_each(|(code, group)| affine[*group as usize].apply(code));
            }
        }
    }
}

impl Groups {
    /// The values of every group, if groups are whole blocks, or one is the row of `values`.
    pub(super) fn whole_blocks(&self, values: usize) -> Option<usize> {
        match self {
            Self::Even(size) if size.is_multiple_of(BLOCK) || *size >= values => Some(*size),
            _ => None,
        }
    }
}

/// Codes of a row as blocks. `of` says what a group of `size` values has: with [`Bits::Offset`] any zero point, else that which `bits` begin with or none.
pub(super) fn blocks_of(bits: Bits, codes: &[f32], size: usize, of: impl Fn(usize) -> Affine, to: &mut Column) {
    to.clear();
    for (block, codes) in codes.chunks(BLOCK).enumerate() {
        let Affine { zero, scale } = of(block * BLOCK / size);
        to.scales.push(f16::from_f32(scale));
        // Of four bits the numbers of the table's entries are kept.
        let nothing = match bits {
            Bits::Eight => 0.0,
            Bits::Four(_) => 8.0,
            Bits::Offset => {
                to.offsets.push(f16::from_f32(-zero * scale));
                zero
            }
        };
        to.values.extend(codes.iter().map(|code| (code - zero + nothing) as i8));
        to.values.resize((block + 1) * BLOCK, nothing as i8);
    }
}

/// Whether blocks with offsets can have these scales: f16 has them, and none turns an offset around.
pub(super) fn fit_offsets(scales: &[f32]) -> bool {
    fit_f16(scales) && scales.iter().all(|scale| *scale >= 0.0)
}

/// Whether f16 has all of these scales.
pub(super) fn fit_f16(scales: &[f32]) -> bool {
    scales.iter().all(|scale| f16::from_f32(*scale).to_f32() == *scale)
}

impl Checkpoint {
    /// The groups that a tensor of indices says, one for each of `values`, of `count`. It may say what the values' own order does, or nothing:
    /// then they are groups of `size`.
    pub(super) fn group_indices(
        &self,
        name: &str,
        values: usize,
        [size, count]: [usize; 2],
    ) -> Result<Groups, CheckpointError> {
        let indices = self.locate_as(name, &[values], &[FileDtype::I32, FileDtype::I64])?.integers();
        // Of several groups none is empty: this is what tools write that have not set the indices, as with -1.
        let unset = indices.iter().all(|index| *index == 0) && count > 1;
        let in_order = || indices.iter().enumerate().all(|(at, index)| *index == (at / size.max(1)) as i64);
        if unset || indices.contains(&-1) || in_order() {
            return Ok(Groups::Even(size));
        }
        let group = |index: &i64| u32::try_from(*index).ok().filter(|index| (*index as usize) < count);
        let listed = indices.iter().map(group).collect::<Option<Vec<u32>>>();
        let listed = listed.ok_or_else(|| {
            self.packed_wrongly(name, format!("it names other groups than the {count} that there are scales for"))
        })?;
        Ok(Groups::Listed(listed, count))
    }
}
