//! The trained tables: input prompt, deep prompts and score head, in f32 on the client.

use std::sync::atomic::{AtomicU64, Ordering};

use petals_protocol::{Injection, PromptsId, Span};

use super::names::{Task, TuningMode};

mod gradients;
mod init;
mod parts;

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
    /// The score head, `[labels, hidden]`, without bias.
    Score,
}

/// Extents of the trained tables, and what the deep prompts do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableShape {
    /// What each block does to the prefix; [`Injection::None`] is `ptune`, the others are `deep_ptune`.
    pub injection: Injection,
    /// Blocks of the model.
    pub blocks: usize,
    /// Rows of the prefix, `m`.
    pub prefix_len: usize,
    /// Width of the hidden states, `d`.
    pub hidden: usize,
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
struct Version(PromptsId);

impl Version {
    /// One that no tables of this process had.
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(PromptsId(NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl PartialEq for PromptTables {
    fn eq(&self, other: &Self) -> bool {
        (&self.shape, &self.parts) == (&other.shape, &other.parts)
    }
}

impl Table {
    /// Name of the table's tensor in a saved adapter.
    pub fn tensor_name(self) -> &'static str {
        match self {
            Self::Input => "prompt_embeddings",
            Self::Deep => "intermediate_prompt_embeddings",
            Self::Score => "score.weight",
        }
    }
}

impl TableShape {
    /// The mode these tables belong to.
    pub fn mode(&self) -> TuningMode {
        TuningMode::of(self.injection)
    }

    /// The task these tables belong to.
    pub fn task(&self) -> Task {
        if self.labels.is_some() { Task::SeqCls } else { Task::CausalLm }
    }

    /// Number of deep prompts, `n`: none for `ptune`, `blocks` for add, `blocks - 1` for replace.
    pub fn deep_prompts(&self) -> Option<usize> {
        match self.injection {
            Injection::None => None,
            Injection::Add => Some(self.blocks),
            Injection::Replace => Some(self.blocks.saturating_sub(1)),
        }
    }

    /// Extents of one table, outermost first; `None` if this run does not train it.
    pub fn of(&self, table: Table) -> Option<Vec<usize>> {
        match table {
            Table::Input => Some(vec![self.prefix_len, self.hidden]),
            Table::Deep => self.deep_prompts().map(|n| vec![n, self.prefix_len, self.hidden]),
            Table::Score => self.labels.map(|labels| vec![labels, self.hidden]),
        }
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        [Table::Input, Table::Deep, Table::Score].iter().filter_map(|&table| self.len(table)).sum()
    }

    /// Values of one table.
    pub(crate) fn len(&self, table: Table) -> Option<usize> {
        Some(self.of(table)?.iter().product())
    }

    /// Values of one prompt, `prefix_len * hidden`.
    pub(crate) fn prompt_len(&self) -> usize {
        self.prefix_len * self.hidden
    }

    /// Whether blocks get prompts of their own.
    pub(crate) fn has_prompts(&self) -> bool {
        self.prefix_len > 0 && self.injection != Injection::None
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

    /// The input prompt, `[prefix_len, hidden]`.
    pub fn input(&self) -> &[f32] {
        &self.parts.input
    }

    /// The score head, `[labels, hidden]`, for seq-cls.
    pub fn score(&self) -> Option<&[f32]> {
        self.parts.score.as_deref()
    }

    /// Whether the input prompt's hidden states flow from block to block ([`Injection::Replace`] makes new ones in each).
    pub(crate) fn carries_prefix(&self) -> bool {
        self.shape.prefix_len > 0 && self.shape.injection != Injection::Replace
    }

    /// The prompts of a span's blocks, `[span, prefix_len, hidden]`, as a forward request carries them; `None` if blocks
    /// have none.
    ///
    /// # Panics
    /// If the span reaches past the model's last block.
    pub fn prompts_for(&self, span: Span) -> Option<Vec<f32>> {
        if !self.shape.has_prompts() {
            return None;
        }
        let mut prompts = Vec::with_capacity(span.len() * self.shape.prompt_len());
        for block in span.blocks() {
            prompts.extend_from_slice(self.parts.prompt(&self.shape, block as usize));
        }
        Some(prompts)
    }

    /// Takes over the tables that `given` has and keeps the rest, which it names.
    ///
    /// # Errors
    /// [`StartError`] if a given table has another shape, or if deep prompts would be dropped or reinterpreted.
    pub fn start_from(&mut self, given: &PromptTables) -> Result<Vec<Table>, StartError> {
        if given.shape.mode() == TuningMode::DeepPtune && given.shape.injection != self.shape.injection {
            return Err(StartError::Injection { given: given.shape.injection, wanted: self.shape.injection });
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
                return Err(StartError::Shape { table: table.tensor_name(), got, expected });
            }
            values.copy_from_slice(start);
        }
        Ok(kept)
    }

    /// The name of the values as they are now: equal names, equal values.
    pub(crate) fn version(&self) -> PromptsId {
        self.version.0
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
        table: &'static str,
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
}

#[cfg(test)]
mod tests;
