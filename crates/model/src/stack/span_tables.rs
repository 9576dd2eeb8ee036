//! The tables of a span, kept on its device for as long as sequences need them.

use petals_protocol::{Injection, PassLayout, Span, WeightChange};

use super::BlockStack;
use super::pass::{PassError, changeable, optional};
use super::tables::BlockTables;
use crate::engine::{Engine, OnEngine, PerEngine, map_engine};

/// Tables of the blocks of a span, on its device.
#[derive(Debug)]
pub struct SpanTables {
    span: Span,
    injection: Injection,
    prefix_rows: usize,
    blocks: OnEngine<Tables>,
}

/// One of each block.
pub(super) enum Tables {}

impl PerEngine for Tables {
    type On<E: Engine> = Vec<BlockTables<E>>;
}

impl BlockStack {
    /// Moves the tables of a layout to the device: `values` `[n, block_values]`, see [`PassLayout::block_tables`].
    ///
    /// # Errors
    /// [`PassError`] if the blocks are not here or have no such matrices, or the values are not as many.
    pub fn upload_tables(&self, layout: &PassLayout, values: &[f32]) -> Result<SpanTables, PassError> {
        if !self.span.covers(layout.span) {
            return Err(PassError::Span { asked: layout.span, held: self.span });
        }
        changeable(layout.weights, &self.config)?;
        let slots = layout.block_tables(self.config.block_widths());
        let of_block = layout.block_values(self.config.block_widths());
        optional("the tables", Some(values), layout.has_tables(), layout.span.len() * of_block)?;
        let blocks = map_engine!(&self.blocks, blocks => BlockTables::upload_all(&blocks.engine, &slots, values));
        Ok(SpanTables { span: layout.span, injection: layout.injection, prefix_rows: layout.prefix_rows(), blocks })
    }

    /// Bytes of a layout's tables that its sequences need for as long as they grow: all if they change weights, else none, since a prefix is in
    /// the caches.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn lasting_table_bytes(&self, layout: &PassLayout) -> u64 {
        if layout.weights == WeightChange::None {
            return 0;
        }
        let values = layout.block_values(self.config.block_widths()) as u64;
        values.saturating_mul(4 * layout.span.len() as u64)
    }
}

impl SpanTables {
    /// The blocks they are for.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Whether they have what a prefix of `rows` rows needs.
    pub(super) fn fits(&self, injection: Injection, rows: usize) -> bool {
        self.injection == injection && (injection == Injection::None || self.prefix_rows == rows)
    }

    pub(super) fn blocks(&self) -> &OnEngine<Tables> {
        &self.blocks
    }
}
