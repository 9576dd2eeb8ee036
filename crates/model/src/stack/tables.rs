//! Tables that travel with a pass: on the device, beside the frozen blocks, and their gradients.

use std::ops::Range;

use petals_protocol::{BlockTable, BlockWidths, Module, TableKind};

use crate::config::ModelConfig;
use crate::engine::Engine;
use crate::engine::shapes::Area;

/// The tables of one block.
#[derive(Debug)]
pub(super) struct BlockTables<E: Engine> {
    /// Prompts `[m, d]`, which are needed until they are in front of the text.
    pub(super) prompts: Option<E::Rows>,
    /// Keys beside values of the prefix, `[m, 2·key_heads·dim]`.
    pub(super) keys_values: Option<E::Rows>,
    pub(super) weights: WeightTables<E>,
}

/// What is adapted of a block's weights.
#[derive(Debug)]
pub(super) struct WeightTables<E: Engine> {
    low_rank: Vec<(Module, LowRank<E>)>,
    /// Each `[1, width]`.
    scales: Vec<(Module, E::Rows)>,
}

/// `(x·Aᵀ)·B`.
#[derive(Debug)]
struct LowRank<E: Engine> {
    /// `[rank, input]`
    a: E::Rows,
    /// `[rank, output]`
    b: E::Rows,
}

/// Gradients of a block's tables.
pub(super) type TableGrads<E> = Vec<(TableKind, <E as Engine>::Rows)>;

/// The weights' tables of some of a block's rows. Others have other ones.
#[derive(Debug)]
pub(super) struct Adapted<'p, E: Engine> {
    pub(super) tables: &'p WeightTables<E>,
    /// Which of all rows.
    pub(super) rows: Range<usize>,
    /// Which of the active ones.
    pub(super) active: Range<usize>,
}

/// What a pass brings along for one block.
#[derive(Debug)]
pub(super) struct Given<'p, E: Engine> {
    pub(super) adapted: &'p [Adapted<'p, E>],
    /// Keys beside values in front of those of all rows.
    pub(super) keys_values: Option<&'p E::Rows>,
}

impl<E: Engine> Clone for Given<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Engine> Copy for Given<'_, E> {}

impl<E: Engine> Given<'_, E> {
    pub(super) fn has_low_rank(&self, module: Module) -> bool {
        self.adapted.iter().any(|adapted| adapted.tables.has_low_rank(module))
    }

    /// Whether keys or values of any row are scaled.
    pub(super) fn scales_keys_values(&self) -> bool {
        let scales = |tables: &WeightTables<E>| tables.has_scale(Module::Key) || tables.has_scale(Module::Value);
        self.adapted.iter().any(|adapted| scales(adapted.tables))
    }
}

impl<E: Engine> BlockTables<E> {
    /// Moves the tables of a block to the device: `values` back to back as `tables` says.
    pub(super) fn upload(engine: &E, tables: &[BlockTable], mut values: &[f32]) -> Self {
        let mut all = Self { prompts: None, keys_values: None, weights: WeightTables::none() };
        let mut a = None;
        for table in tables {
            let (own, rest) = values.split_at(table.values().min(values.len()));
            values = rest;
            let rows = engine.upload(own.to_vec(), table.width);
            match table.kind {
                TableKind::Prompts => all.prompts = Some(rows),
                TableKind::KeysValues => all.keys_values = Some(rows),
                TableKind::LowRankA(_) => a = Some(rows),
                TableKind::LowRankB(module) => {
                    all.weights.low_rank.extend(a.take().map(|a| (module, LowRank { a, b: rows })));
                }
                TableKind::Scale(module) => all.weights.scales.push((module, rows)),
            }
        }
        all
    }

    /// Those of every block of a span: `values` of block after block.
    pub(super) fn upload_all(engine: &E, tables: &[BlockTable], values: &[f32]) -> Vec<Self> {
        let of_block: usize = tables.iter().map(BlockTable::values).sum();
        values.chunks_exact(of_block.max(1)).map(|values| Self::upload(engine, tables, values)).collect()
    }

    /// Bytes of the tables that stay when the prompts are in front of the text.
    pub(super) fn lasting_bytes(&self) -> u64 {
        let weights = &self.weights;
        let low_rank = weights.low_rank.iter().map(|(_, tables)| E::bytes(&tables.a) + E::bytes(&tables.b));
        let scales = weights.scales.iter().map(|(_, scale)| E::bytes(scale));
        self.keys_values.as_ref().map_or(0, E::bytes) + low_rank.chain(scales).sum::<u64>()
    }
}

/// Bytes of a block's tables that stay: exactly what [`BlockTables::lasting_bytes`] will say.
pub(super) fn lasting_bytes(tables: &[BlockTable]) -> u64 {
    let stays = |table: &&BlockTable| table.kind != TableKind::Prompts;
    4 * tables.iter().filter(stays).map(|table| table.values() as u64).sum::<u64>()
}

/// Where the table of this kind begins in a block's values, if there is one.
pub(super) fn first_of(tables: &[BlockTable], kind: TableKind) -> Option<usize> {
    let number = tables.iter().position(|table| table.kind == kind)?;
    Some(tables[..number].iter().map(BlockTable::values).sum())
}

impl<E: Engine> WeightTables<E> {
    pub(super) fn none() -> Self {
        Self { low_rank: Vec::new(), scales: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.low_rank.is_empty() && self.scales.is_empty()
    }

    pub(super) fn has_low_rank(&self, module: Module) -> bool {
        self.low_rank.iter().any(|(adapted, _)| *adapted == module)
    }

    pub(super) fn has_scale(&self, module: Module) -> bool {
        self.scales.iter().any(|(scaled, _)| *scaled == module)
    }

    fn low_rank(&self, module: Module) -> Option<&LowRank<E>> {
        self.low_rank.iter().find(|(adapted, _)| *adapted == module).map(|(_, tables)| tables)
    }

    fn scale_of(&self, module: Module) -> Option<&E::Rows> {
        self.scales.iter().find(|(scaled, _)| *scaled == module).map(|(_, scale)| scale)
    }

    /// What the low-rank tables of `module` make of the rows of its input `x` that begin at `first`, added to the rows `rows` of its output, which
    /// begins at `column` of `y`.
    pub(super) fn add(
        &self,
        engine: &E,
        module: Module,
        (x, first): (&E::Rows, usize),
        (y, rows, column): (E::Rows, &Range<usize>, usize),
    ) -> E::Rows {
        let Some(LowRank { a, b }) = self.low_rank(module).filter(|_| !rows.is_empty()) else { return y };
        let low = engine.times_table_back(x, &Area { rows: first..first + rows.len(), column: 0 }, a);
        engine.add_times_table(y, &Area { rows: rows.clone(), column }, &low, b)
    }

    /// Scales the rows `rows` of what `module` scales, which begins at `column`.
    pub(super) fn scale(&self, engine: &E, module: Module, y: E::Rows, rows: &Range<usize>, column: usize) -> E::Rows {
        let Some(scale) = self.scale_of(module).filter(|_| !rows.is_empty()) else { return y };
        engine.scale(y, &Area { rows: rows.clone(), column }, scale)
    }

    /// The gradients of the low-rank tables of `module`, from its input's rows that begin at `first` of `x`, and the gradient of its output, which begins
    /// at `column` of `dy`: `dA = (dy·Bᵀ)ᵀ·x`, `dB = (x·Aᵀ)ᵀ·dy`. Gives back `dy·Bᵀ` for [`Self::add_back`].
    pub(super) fn gradients(
        &self,
        engine: &E,
        module: Module,
        (x, first): (&E::Rows, usize),
        (dy, column): (&E::Rows, usize),
        grads: &mut TableGrads<E>,
    ) -> Option<E::Rows> {
        let LowRank { a, b } = self.low_rank(module)?;
        let count = engine.height(dy);
        let (input, output) = (Area { rows: first..first + count, column: 0 }, Area { rows: 0..count, column });
        let low = engine.times_table_back(x, &input, a);
        let d_low = engine.times_table_back(dy, &output, b);
        grads.push((TableKind::LowRankA(module), engine.table_gradient(&d_low, x, &input, engine.width(a))));
        grads.push((TableKind::LowRankB(module), engine.table_gradient(&low, dy, &output, engine.width(b))));
        Some(d_low)
    }

    /// Adds `d_low·A`, what came through low-rank tables, to the input's gradient from row `first` on.
    pub(super) fn add_back(
        &self,
        engine: &E,
        module: Module,
        d_low: Option<&E::Rows>,
        (dx, first): (E::Rows, usize),
    ) -> E::Rows {
        let Some((LowRank { a, .. }, d_low)) = self.low_rank(module).zip(d_low) else { return dx };
        let area = Area { rows: first..first + engine.height(d_low), column: 0 };
        engine.add_times_table(dx, &area, d_low, a)
    }

    /// The backward of [`Self::scale`] over all rows: the gradient of what `y` was before.
    pub(super) fn scale_back(
        &self,
        engine: &E,
        module: Module,
        before: &E::Rows,
        (dy, column): (E::Rows, usize),
        grads: &mut TableGrads<E>,
    ) -> E::Rows {
        let Some(scale) = self.scale_of(module) else { return dy };
        let area = Area { rows: 0..engine.height(&dy), column };
        let gradient = engine.scale_gradient(before, &dy, &area, engine.width(scale));
        grads.push((TableKind::Scale(module), gradient));
        engine.scale(dy, &area, scale)
    }
}

impl ModelConfig {
    /// Widths of a block's rows, from which those of its tables follow.
    pub fn block_widths(&self) -> BlockWidths {
        BlockWidths {
            hidden: self.hidden_size,
            query: self.query_width(),
            key: self.key_width(),
            intermediate: self.intermediate_size,
        }
    }
}
