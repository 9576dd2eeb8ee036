//! The tables of a span, kept where its blocks are for as long as sequences need them.

use petals_protocol::{Injection, PassLayout, Span, WeightChange};

use super::pass::{PassError, changeable, optional};
use super::tables::BlockTables;
use super::{BlockStack, OnePlace, Part};
use crate::device::Device;
use crate::engine::{Engine, OnEngine, PerEngine, map_engine};

/// Tables of the blocks of a span, on their devices.
#[derive(Debug)]
pub struct SpanTables {
    span: Span,
    injection: Injection,
    prefix_rows: usize,
    /// Of each part of the stack that has blocks of the span.
    parts: Vec<(Span, Device, OnEngine<Tables>)>,
}

/// One of each block.
pub(super) enum Tables {}

impl PerEngine for Tables {
    type On<E: Engine> = Vec<BlockTables<E>>;
}

impl BlockStack {
    /// Moves the tables of a layout to where its blocks are: `values` `[n, block_values]`, see [`PassLayout::block_tables`].
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
        let mut rest = values;
        let parts = self.parts_of(layout.span).map(|(own, part)| {
            let (values, behind) = rest.split_at(own.len() * of_block);
            rest = behind;
            let tables = map_engine!(&part.blocks, blocks => BlockTables::upload_all(&blocks.engine, &slots, values));
            (own, part.place.device.clone(), tables)
        });
        let parts = parts.collect();
        Ok(SpanTables { span: layout.span, injection: layout.injection, prefix_rows: layout.prefix_rows(), parts })
    }

    /// Bytes of a layout's tables that its sequences need for as long as they grow: all if they change weights, else none, since a prefix is in
    /// the caches.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn lasting_table_bytes(&self, layout: &PassLayout) -> u64 {
        self.places().map(|place| place.lasting_table_bytes(layout)).fold(0, u64::saturating_add)
    }
}

impl OnePlace<'_> {
    /// As [`BlockStack::lasting_table_bytes`], of these blocks alone.
    pub fn lasting_table_bytes(self, layout: &PassLayout) -> u64 {
        let own = self.part.span.intersect(layout.span).map_or(0, Span::len);
        if layout.weights == WeightChange::None {
            return 0;
        }
        let values = layout.block_values(self.config.block_widths()) as u64;
        values.saturating_mul(4 * own as u64)
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

    /// Those of the part `number` of their span, which is a stack's part with the blocks `own`; `None` if they are elsewhere.
    pub(super) fn of_part(&self, number: usize, own: Span, part: &Part) -> Option<&OnEngine<Tables>> {
        let (span, device, tables) = self.parts.get(number)?;
        (*span == own && *device == part.place.device).then_some(tables)
    }
}
