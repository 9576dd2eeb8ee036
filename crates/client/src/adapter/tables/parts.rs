//! Values in the shape of the trained tables: the tables, their gradients, the optimiser's moments.

use petals_protocol::{Injection, TableKind};

use super::{Table, TableShape};

/// Values laid out like the trained tables, in the order of [`TableShape::tables`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parts(Vec<(Table, Vec<f32>)>);

impl Parts {
    pub(crate) fn zeros(shape: &TableShape) -> Self {
        Self(shape.tables().into_iter().map(|table| (table, vec![0.0; shape.len(table).unwrap_or_default()])).collect())
    }

    /// Of values that have been checked against the shape of the tables.
    pub(crate) fn new(tables: Vec<(Table, Vec<f32>)>) -> Self {
        Self(tables)
    }

    pub(crate) fn get(&self, table: Table) -> Option<&[f32]> {
        self.0.iter().find(|(own, _)| *own == table).map(|(_, values)| values.as_slice())
    }

    pub(crate) fn get_mut(&mut self, table: Table) -> Option<&mut [f32]> {
        self.0.iter_mut().find(|(own, _)| *own == table).map(|(_, values)| values.as_mut_slice())
    }

    /// The tables there are, always in the same order.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Table, &[f32])> {
        self.0.iter().map(|(table, values)| (*table, values.as_slice()))
    }

    /// As [`Parts::each`].
    pub(crate) fn each_mut(&mut self) -> impl Iterator<Item = (Table, &mut [f32])> {
        self.0.iter_mut().map(|(table, values)| (*table, values.as_mut_slice()))
    }

    /// What block `block` gets as its table of this kind.
    pub(crate) fn of_block(&self, shape: &TableShape, kind: TableKind, block: usize) -> &[f32] {
        let (table, place) = place(shape, kind, block);
        let len = shape.block_len(table);
        self.get(table).and_then(|values| values.get(place * len..(place + 1) * len)).unwrap_or_default()
    }

    /// As [`Parts::of_block`].
    pub(crate) fn of_block_mut(&mut self, shape: &TableShape, kind: TableKind, block: usize) -> &mut [f32] {
        let (table, place) = place(shape, kind, block);
        let len = shape.block_len(table);
        self.get_mut(table).and_then(|values| values.get_mut(place * len..(place + 1) * len)).unwrap_or_default()
    }
}

/// Which table has what block `block` gets, and at which place in it.
fn place(shape: &TableShape, kind: TableKind, block: usize) -> (Table, usize) {
    match (kind, shape.injection, block) {
        // What block 0 puts in the prefix's place is the input prompt itself.
        (TableKind::Prompts, Injection::Replace, 0) => (Table::Input, 0),
        (TableKind::Prompts, Injection::Replace, _) => (Table::Deep, block - 1),
        (TableKind::Prompts, ..) => (Table::Deep, block),
        (TableKind::KeysValues, ..) => (Table::KeysValues, block),
        (TableKind::LowRankA(module), ..) => (Table::LowRankA(module), block),
        (TableKind::LowRankB(module), ..) => (Table::LowRankB(module), block),
        (TableKind::Scale(module), ..) => (Table::Scale(module), block),
    }
}
