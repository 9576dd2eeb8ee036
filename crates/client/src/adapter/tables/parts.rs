//! Three vectors of values in the shape of the trained tables: the tables, their gradients, the optimiser's moments.

use petals_protocol::Injection;

use super::{Table, TableShape};

/// Values laid out like the trained tables.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parts {
    pub(crate) input: Vec<f32>,
    pub(crate) deep: Option<Vec<f32>>,
    pub(crate) score: Option<Vec<f32>>,
}

impl Parts {
    pub(crate) fn zeros(shape: &TableShape) -> Self {
        let zeros = |table| shape.len(table).map(|len| vec![0.0; len]);
        Self { input: vec![0.0; shape.prompt_len()], deep: zeros(Table::Deep), score: zeros(Table::Score) }
    }

    pub(crate) fn get(&self, table: Table) -> Option<&[f32]> {
        match table {
            Table::Input => Some(&self.input),
            Table::Deep => self.deep.as_deref(),
            Table::Score => self.score.as_deref(),
        }
    }

    /// The tables there are, always in the same order.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Table, &[f32])> {
        let deep = self.deep.as_deref().map(|values| (Table::Deep, values));
        let score = self.score.as_deref().map(|values| (Table::Score, values));
        [Some((Table::Input, self.input.as_slice())), deep, score].into_iter().flatten()
    }

    /// As [`Parts::each`].
    pub(crate) fn each_mut(&mut self) -> impl Iterator<Item = (Table, &mut [f32])> {
        let deep = self.deep.as_deref_mut().map(|values| (Table::Deep, values));
        let score = self.score.as_deref_mut().map(|values| (Table::Score, values));
        [Some((Table::Input, self.input.as_mut_slice())), deep, score].into_iter().flatten()
    }

    /// The prompt that block `block` gets, `[prefix_len, hidden]`.
    pub(crate) fn prompt(&self, shape: &TableShape, block: usize) -> &[f32] {
        let len = shape.prompt_len();
        let deep = self.deep.as_deref().unwrap_or(&[]);
        match (shape.injection, block) {
            (Injection::Replace, 0) => &self.input,
            (Injection::Replace, _) => &deep[(block - 1) * len..block * len],
            _ => &deep[block * len..(block + 1) * len],
        }
    }

    /// As [`Parts::prompt`].
    pub(crate) fn prompt_mut(&mut self, shape: &TableShape, block: usize) -> &mut [f32] {
        let len = shape.prompt_len();
        let deep = self.deep.as_deref_mut().unwrap_or(&mut []);
        match (shape.injection, block) {
            (Injection::Replace, 0) => &mut self.input,
            (Injection::Replace, _) => &mut deep[(block - 1) * len..block * len],
            _ => &mut deep[block * len..(block + 1) * len],
        }
    }
}
