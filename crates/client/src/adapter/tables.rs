//! The trained tables: input prompt, deep prompts and score head, in f32 on the client.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use petals_model::ModelConfig;
use petals_protocol::{BlockTable, BlockWidths, Injection, Module, Modules, Span, TableKind, TablesId, WeightChange};

use super::method::Method;
use super::names::{Task, TuningMode};

mod gradients;
mod init;
mod parts;

pub(crate) use gradients::clip_factor;
pub use gradients::{GradientError, TableGradients};
pub use init::{DeepInit, InitError, InitRule, TableInit};
pub(crate) use parts::Parts;

/// One of the trained tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// The input prompt `P`, `[prefix_len, hidden]`.
    Input,
    /// The deep prompts `Q`, `[n, prefix_len, hidden]`.
    Deep,
    /// Keys beside values in front of the text, `[blocks, prefix_len, 2·key]`.
    KeysValues,
    /// `[blocks, rank, input]`: PEFT's `lora_A` of a matrix.
    LowRankA(Module),
    /// `[blocks, rank, output]`: PEFT's `lora_B` of a matrix, transposed.
    LowRankB(Module),
    /// What a matrix's output, or the MLP's inside, is multiplied with, `[blocks, width]`: PEFT's `ia3_l`.
    Scale(Module),
    /// The score head, `[labels, hidden]`, without bias.
    Score,
}

/// Extents of the trained tables, and what they do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableShape {
    /// What each block does to the prefix; [`Injection::None`] with a prefix is `ptune`.
    pub injection: Injection,
    /// How the blocks' weights are adapted.
    pub weights: WeightChange,
    /// What low-rank products are multiplied with: `alpha / rank`, or `alpha / sqrt(rank)` (rslora).
    pub scale: f32,
    /// Blocks of the model.
    pub blocks: usize,
    /// Rows of the prefix, `m`; 0 without one.
    pub prefix_len: usize,
    /// Widths of a block's rows.
    pub widths: BlockWidths,
    /// Classes of the score head; `None` for causal-lm.
    pub labels: Option<usize>,
}

/// The trained tables of one run.
///
/// Under [`Injection::Add`] there are as many deep prompts as blocks. Under [`Injection::Replace`] there is one less:
/// what block 0 puts in the prefix's place is the input prompt itself, so that no parameter is dead.
#[derive(Debug, Clone)]
pub struct PromptTables {
    shape: TableShape,
    parts: Parts,
    version: Version,
}

/// Names what tables hold, so that servers can be told which prompts they have already. Every change makes a new one.
#[derive(Debug, Clone, Copy)]
struct Version(TablesId);

impl Version {
    /// One that no tables of this process had.
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(TablesId(NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl PartialEq for PromptTables {
    fn eq(&self, other: &Self) -> bool {
        (&self.shape, &self.parts) == (&other.shape, &other.parts)
    }
}

impl Table {
    /// The tables that are in front of the text.
    pub(crate) const IN_FRONT: [Self; 3] = [Self::Input, Self::Deep, Self::KeysValues];

    /// Name of the table's tensor in a training state, and in a saved adapter where PEFT has no other.
    pub fn tensor_name(self) -> Cow<'static, str> {
        match self {
            Self::Input => "prompt_embeddings".into(),
            Self::Deep => "intermediate_prompt_embeddings".into(),
            Self::KeysValues => "prefix_keys_values".into(),
            Self::LowRankA(module) => format!("lora_A.{module}").into(),
            Self::LowRankB(module) => format!("lora_B.{module}").into(),
            Self::Scale(module) => format!("ia3_l.{module}").into(),
            Self::Score => "score.weight".into(),
        }
    }
}

impl Method {
    /// The tables that it has on a model, for so many classes if it is to classify.
    pub fn shape(&self, config: &ModelConfig, labels: Option<usize>) -> TableShape {
        let Self { injection, prefix_len, weights, scale } = *self;
        let (blocks, widths) = (config.num_hidden_layers, config.block_widths());
        TableShape { injection, weights, scale, blocks, prefix_len, widths, labels }
    }
}

impl TableShape {
    /// The mode these tables belong to.
    pub fn mode(&self) -> TuningMode {
        TuningMode::of(self.prefix_len, self.injection, self.weights)
    }

    /// What is trained with them.
    pub fn method(&self) -> Method {
        let Self { injection, prefix_len, weights, scale, .. } = *self;
        Method { injection, prefix_len, weights, scale }
    }

    /// The task these tables belong to.
    pub fn task(&self) -> Task {
        if self.labels.is_some() { Task::SeqCls } else { Task::CausalLm }
    }

    /// Number of deep prompts, `n`: `blocks` for add, `blocks - 1` for replace, else none.
    pub fn deep_prompts(&self) -> Option<usize> {
        match self.injection {
            Injection::None | Injection::KeysValues => None,
            Injection::Add => Some(self.blocks),
            Injection::Replace => Some(self.blocks.saturating_sub(1)),
        }
    }

    /// Every table that there is, always in the same order.
    pub fn tables(&self) -> Vec<Table> {
        let of_modules = |modules: Modules, tables: fn(Module) -> Vec<Table>| modules.iter().flat_map(tables);
        let mut all = vec![Table::Input, Table::Deep, Table::KeysValues];
        match self.weights {
            WeightChange::None => {}
            WeightChange::LowRank { modules, .. } => {
                all.extend(of_modules(modules, |module| vec![Table::LowRankA(module), Table::LowRankB(module)]));
            }
            WeightChange::Scales { modules } => all.extend(of_modules(modules, |module| vec![Table::Scale(module)])),
        }
        all.push(Table::Score);
        all.retain(|&table| self.of(table).is_some());
        all
    }

    /// Extents of one table, outermost first; `None` if this run does not train it.
    pub fn of(&self, table: Table) -> Option<Vec<usize>> {
        let (blocks, hidden, m) = (self.blocks, self.widths.hidden, self.prefix_len);
        let of_weights = |kind: TableKind| {
            let table = self.weights.tables(self.widths).into_iter().find(|table| table.kind == kind)?;
            Some(if matches!(kind, TableKind::Scale(_)) {
                vec![blocks, table.width]
            } else {
                vec![blocks, table.rows, table.width]
            })
        };
        match table {
            Table::Input => (self.injection != Injection::KeysValues && m > 0).then(|| vec![m, hidden]),
            Table::Deep => self.deep_prompts().filter(|_| m > 0).map(|n| vec![n, m, hidden]),
            Table::KeysValues => {
                (self.injection == Injection::KeysValues).then(|| vec![blocks, m, 2 * self.widths.key])
            }
            Table::LowRankA(module) => of_weights(TableKind::LowRankA(module)),
            Table::LowRankB(module) => of_weights(TableKind::LowRankB(module)),
            Table::Scale(module) => of_weights(TableKind::Scale(module)),
            Table::Score => self.labels.map(|labels| vec![labels, hidden]),
        }
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.tables().into_iter().filter_map(|table| self.len(table)).sum()
    }

    /// Width of the hidden states.
    pub fn hidden(&self) -> usize {
        self.widths.hidden
    }

    /// Values of one table.
    pub(crate) fn len(&self, table: Table) -> Option<usize> {
        Some(self.of(table)?.iter().product())
    }

    /// Values that one block has of a table.
    pub(crate) fn block_len(&self, table: Table) -> usize {
        match table {
            Table::Input | Table::Deep => self.prompt_len(),
            _ => self.len(table).unwrap_or_default() / self.blocks.max(1),
        }
    }

    /// Values of one prompt, `prefix_len * hidden`.
    pub(crate) fn prompt_len(&self) -> usize {
        self.prefix_len * self.widths.hidden
    }

    /// The tables that travel for each block, in their order.
    pub(crate) fn block_tables(&self) -> Vec<BlockTable> {
        let mut tables = self.injection.tables(self.prefix_len, self.widths);
        tables.extend(self.weights.tables(self.widths));
        tables
    }

    /// What a table is multiplied with on its way to the servers.
    pub(crate) fn factor(&self, kind: TableKind) -> f32 {
        if matches!(kind, TableKind::LowRankB(_)) { self.scale } else { 1.0 }
    }
}

impl PromptTables {
    /// Tables of zeros.
    pub fn zeros(shape: TableShape) -> Self {
        Self { shape, parts: Parts::zeros(&shape), version: Version::new() }
    }

    /// Joins tables that were checked against `shape`.
    pub(crate) fn from_parts(shape: TableShape, parts: Parts) -> Self {
        debug_assert!(parts.each().all(|(table, values)| shape.len(table) == Some(values.len())));
        debug_assert!(parts.each().map(|(table, _)| table).eq(shape.tables()));
        Self { shape, parts, version: Version::new() }
    }

    /// The tables' extents.
    pub fn shape(&self) -> &TableShape {
        &self.shape
    }

    /// Values of one table, row-major; `None` if this run does not train it.
    pub fn table(&self, table: Table) -> Option<&[f32]> {
        self.parts.get(table)
    }

    /// As [`Self::table`], to be changed.
    pub fn table_mut(&mut self, table: Table) -> Option<&mut [f32]> {
        self.parts_mut().get_mut(table)
    }

    /// The input prompt, `[prefix_len, hidden]`; empty without one.
    pub fn input(&self) -> &[f32] {
        self.table(Table::Input).unwrap_or_default()
    }

    /// The score head, `[labels, hidden]`, for seq-cls.
    pub fn score(&self) -> Option<&[f32]> {
        self.table(Table::Score)
    }

    /// Whether the input prompt's hidden states flow from block to block.
    pub(crate) fn carries_prefix(&self) -> bool {
        self.shape.prefix_len > 0 && self.shape.injection.carries_prefix()
    }

    /// Values of the tables of one block.
    pub(crate) fn block_values(&self) -> usize {
        self.shape.block_tables().iter().map(BlockTable::values).sum()
    }

    /// The tables of a span's blocks, `[span, block_values]`, as a request carries them; `None` if blocks have none.
    pub fn tables_for(&self, span: Span) -> Option<Vec<f32>> {
        let slots = self.shape.block_tables();
        if slots.is_empty() {
            return None;
        }
        let of_block = slots.iter().map(BlockTable::values).sum::<usize>();
        let mut tables = Vec::with_capacity(span.len() * of_block);
        for block in span.blocks() {
            for slot in &slots {
                let values = self.parts.of_block(&self.shape, slot.kind, block as usize);
                let factor = self.shape.factor(slot.kind);
                tables.extend(values.iter().map(|value| value * factor));
            }
        }
        Some(tables)
    }

    /// Takes over the tables that `given` has and keeps the rest, which it names.
    ///
    /// # Errors
    /// [`StartError`] if a given table has another shape, or if deep prompts would be dropped or reinterpreted.
    pub fn start_from(&mut self, given: &PromptTables) -> Result<Vec<Table>, StartError> {
        if given.shape.injection != Injection::None && given.shape.injection != self.shape.injection {
            return Err(StartError::Injection { given: given.shape.injection, wanted: self.shape.injection });
        }
        if given.shape.weights != WeightChange::None && given.shape.weights != self.shape.weights {
            return Err(StartError::Weights { given: given.shape.weights, wanted: self.shape.weights });
        }
        let mut kept = Vec::new();
        let shape = self.shape;
        for (table, values) in self.parts_mut().each_mut() {
            let Some(start) = given.table(table) else {
                kept.push(table);
                continue;
            };
            let (got, expected) = (given.shape.of(table), shape.of(table));
            if got != expected {
                let (got, expected) = (got.unwrap_or_default(), expected.unwrap_or_default());
                return Err(StartError::Shape { table: table.tensor_name().into_owned(), got, expected });
            }
            values.copy_from_slice(start);
        }
        Ok(kept)
    }

    /// The name of the values as they are now: equal names, equal values.
    pub(crate) fn version(&self) -> TablesId {
        self.version.0
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn parts_mut(&mut self) -> &mut Parts {
        self.version = Version::new();
        &mut self.parts
    }
}

/// Why a run cannot start from given tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another number of rows, blocks or classes.
    #[error("the given `{table}` has shape {got:?}, this run needs {expected:?}")]
    Shape {
        /// Tensor name.
        table: String,
        /// Shape found.
        got: Vec<usize>,
        /// Shape needed.
        expected: Vec<usize>,
    },
    /// The deep prompts mean something else.
    #[error("the given deep prompts are for injection {given:?}, this run has {wanted:?}")]
    Injection {
        /// Injection of the given tables.
        given: Injection,
        /// Injection of the run.
        wanted: Injection,
    },
    /// The weights are adapted in another way.
    #[error("the given adapter changes the weights by {given:?}, this run by {wanted:?}")]
    Weights {
        /// Of the given tables.
        given: WeightChange,
        /// Of the run.
        wanted: WeightChange,
    },
}

#[cfg(test)]
mod tests;
