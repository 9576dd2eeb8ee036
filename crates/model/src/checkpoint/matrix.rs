//! Weight matrices in their files, whatever their format.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use super::blocks::{Bits, Column};
use super::stored::Stored;

/// A weight matrix `[rows, values]` as some format has it: row after row can be read. All sizes have been checked.
pub(crate) trait Rows: Debug + Send + Sync {
    /// Writes row `row`, in f32; `values` is as long as a row.
    fn decode_row(&self, row: usize, values: &mut [f32]);

    /// Whether its values are floats, and not quantised.
    fn is_float(&self) -> bool {
        false
    }

    /// Of how many bits its rows are, if they lie in blocks of 32 with a scale that f16 has (an offset besides is rounded to one). Looks at all scales and zero points, so it is asked once and
    /// only by whoever loads the weights.
    fn bits(&self) -> Option<Bits> {
        None
    }

    /// Row `row` as it lies, in the bits that [`Self::bits`] says. `values` is as long as a row, for whoever needs it.
    fn blocks_of(&self, bits: Bits, row: usize, values: &mut [f32], to: &mut Column) {
        let _ = (bits, row, values, to);
        unreachable!("the rows do not lie in blocks");
    }

    /// The tensors that hold this matrix and nothing else.
    fn tensors(&self) -> Vec<&Stored>;
}

/// A weight matrix in its files. Rows are features that leave a projection, their values those that enter it.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    rows: Arc<dyn Rows>,
    /// What [`Rows::bits`] said, once it was asked.
    bits: OnceLock<Option<Bits>>,
}

impl Matrix {
    pub(super) fn new(rows: impl Rows + 'static) -> Self {
        Self { rows: Arc::new(rows), bits: OnceLock::new() }
    }

    /// Writes row `row`, in f32; `values` is as long as a row.
    pub(crate) fn decode_row(&self, row: usize, values: &mut [f32]) {
        self.rows.decode_row(row, values);
    }

    /// See [`Rows::is_float`].
    pub(crate) fn is_float(&self) -> bool {
        self.rows.is_float()
    }

    /// See [`Rows::bits`].
    pub(crate) fn bits(&self) -> Option<Bits> {
        *self.bits.get_or_init(|| self.rows.bits())
    }

    /// See [`Rows::blocks_of`].
    pub(crate) fn blocks_of(&self, row: usize, values: &mut [f32], to: &mut Column) {
        if let Some(bits) = self.bits() {
            self.rows.blocks_of(bits, row, values, to);
        }
    }

    /// Asks the system to read its tensors ahead.
    pub(crate) fn want(&self) {
        self.rows.tensors().into_iter().for_each(Stored::want);
    }

    /// Gives back the memory of its mapped tensors; see [`Stored::release`].
    pub(crate) fn release(&self) {
        self.rows.tensors().into_iter().for_each(Stored::release);
    }
}

/// Floats, row after row.
#[derive(Debug)]
pub(super) struct Plain(pub(super) Stored);

impl Rows for Plain {
    fn is_float(&self) -> bool {
        self.0.dtype().is_float()
    }

    fn decode_row(&self, row: usize, values: &mut [f32]) {
        self.0.decode(row * values.len(), values);
    }

    fn tensors(&self) -> Vec<&Stored> {
        vec![&self.0]
    }
}

/// Floats of all experts `[experts, values, rows]`: what is a row here is a column there.
#[derive(Debug)]
pub(super) struct PlainColumns {
    pub(super) tensor: Stored,
    pub(super) expert: usize,
    pub(super) rows: usize,
}

impl Rows for PlainColumns {
    fn is_float(&self) -> bool {
        self.tensor.dtype().is_float()
    }

    fn decode_row(&self, row: usize, values: &mut [f32]) {
        let first = self.expert * values.len();
        for (n, value) in values.iter_mut().enumerate() {
            *value = self.tensor.value((first + n) * self.rows + row);
        }
    }

    fn tensors(&self) -> Vec<&Stored> {
        vec![&self.tensor]
    }
}
