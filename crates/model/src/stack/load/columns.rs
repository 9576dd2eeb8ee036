//! A projection's columns, in its files or rounded on disk.

use crate::checkpoint::Matrix;
use crate::checkpoint::blocks::{Bits, Column, WeightColumns};
use crate::checkpoint::rounded::Rounded;
use crate::config::Part;
use crate::device::Dtype;

/// A projection in its files.
pub(super) struct Sources {
    pub(super) tensors: Tensors,
    /// `[input, output]`.
    pub(super) shape: [usize; 2],
    pub(super) bias: Option<Vec<f32>>,
}

/// The matrices whose rows are the columns of a weight, one after the other.
pub(super) struct Tensors(pub(super) Vec<(Matrix, Part)>);

impl Tensors {
    /// The matrix and the row of it that is column `n`: files hold `[output, input]`.
    fn row(&self, mut n: usize) -> Option<(&Matrix, usize)> {
        for (matrix, part) in &self.0 {
            if n < part.output {
                return Some((matrix, part.row(n)));
            }
            n -= part.output;
        }
        None
    }

    /// Whether nothing is rounded to keep them in `bits`.
    fn lie_in(&self, bits: Bits) -> bool {
        self.bits().is_some_and(|lie| lie.fit_into(bits.kept(Some(lie))))
    }
}

impl WeightColumns for Tensors {
    fn column(&self, n: usize, values: &mut [f32]) {
        if let Some((matrix, row)) = self.row(n) {
            matrix.decode_row(row, values);
        }
    }

    /// Only if all lie alike.
    fn bits(&self) -> Option<Bits> {
        let [(first, _), others @ ..] = &self.0[..] else { return None };
        let bits = first.bits()?;
        others.iter().all(|(matrix, _)| matrix.bits() == Some(bits)).then_some(bits)
    }

    fn blocks(&self, n: usize, values: &mut [f32], to: &mut Column) {
        if let Some((matrix, row)) = self.row(n) {
            matrix.blocks_of(row, values, to);
        }
    }
}

/// Columns that are about to be read. When they have been, the memory of their mapped files is given back.
pub(super) struct Columns<'a> {
    tensors: &'a Tensors,
    /// In their place, where they would be rounded and have been before.
    rounded: Option<Rounded>,
}

impl<'a> Columns<'a> {
    /// Of `tensors` in `dtype`; `rounded` looks for them on disk.
    pub(super) fn wanted(tensors: &'a Tensors, rounded: impl FnOnce(Bits) -> Option<Rounded>, dtype: Dtype) -> Self {
        tensors.0.iter().for_each(|(matrix, _)| matrix.want());
        let bits = Bits::of(dtype).filter(|bits| !tensors.lie_in(*bits));
        Self { tensors, rounded: bits.and_then(rounded) }
    }
}

impl Drop for Columns<'_> {
    fn drop(&mut self) {
        self.tensors.0.iter().for_each(|(matrix, _)| matrix.release());
    }
}

impl WeightColumns for Columns<'_> {
    fn column(&self, n: usize, values: &mut [f32]) {
        match &self.rounded {
            Some(rounded) => rounded.column(n, values),
            None => self.tensors.column(n, values),
        }
    }

    fn bits(&self) -> Option<Bits> {
        match &self.rounded {
            Some(rounded) => rounded.bits(),
            None => self.tensors.bits(),
        }
    }

    fn blocks(&self, n: usize, values: &mut [f32], to: &mut Column) {
        match &self.rounded {
            Some(rounded) => rounded.blocks(n, values, to),
            None => self.tensors.blocks(n, values, to),
        }
    }
}
