//! How the rows of a forward or backward pass lie in memory.

use serde::{Deserialize, Serialize};

use crate::adaptation::{BlockTable, BlockWidths, TableKind, WeightChange, WeightChangeError};
use crate::ids::Span;

/// What happens to the first `prefix_len` positions before each block (docs/prompt-tuning.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Injection {
    /// Nothing: the prefix enters at block 0 and flows on (`ptune`, Lester et al. 2021).
    None,
    /// `prefix += Q_l` before block `l`, as Petals' `deep_ptune` does.
    Add,
    /// `prefix := Q_l` before block `l` (P-Tuning v2, Liu et al. 2021); for block 0 `Q_0` is the input prompt itself.
    Replace,
    /// The prefix has no hidden states: each block gets the keys and values that the text attends to (prefix tuning, Li and Liang 2021).
    KeysValues,
}

impl Injection {
    /// The table of one block for a prefix of `rows` rows, if there is one.
    pub fn tables(self, rows: usize, widths: BlockWidths) -> Vec<BlockTable> {
        let (kind, width) = match self {
            Self::None => return Vec::new(),
            Self::Add | Self::Replace => (TableKind::Prompts, widths.hidden),
            Self::KeysValues => (TableKind::KeysValues, 2 * widths.key),
        };
        vec![BlockTable { kind, rows, width }]
    }

    /// Whether the prefix has hidden states that go from block to block.
    pub fn carries_prefix(self) -> bool {
        matches!(self, Self::None | Self::Add)
    }
}

/// The shape of one micro-batch on its way through a span.
///
/// Text rows are packed: example `i` contributes `lengths[i]` consecutive rows and nothing is padded, so the text tensor
/// is `[tokens, hidden]` with `tokens = lengths.sum()`. The prefix comes first, is the same for every example and
/// travels once: `[prefix_len, hidden]`. Positions are `0..prefix_len` for the prefix and from `prefix_len` for each text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassLayout {
    /// The blocks to run; any part of what the server hosts.
    pub span: Span,
    /// Tokens of each example, every one at least 1.
    pub lengths: Vec<u32>,
    /// Rows of the shared prefix; 0 without prompts.
    pub prefix_len: u32,
    /// What each block does to the prefix. [`Injection::None`] if `prefix_len` is 0.
    pub injection: Injection,
    /// How the weights of the blocks are adapted.
    pub weights: WeightChange,
    /// Packed text rows that are read from the span's output, strictly ascending; `None` for all.
    ///
    /// Set on the last span only: the prefix leaves no output then, nothing reads it.
    pub read_rows: Option<Vec<u32>>,
}

/// Why a [`PassLayout`] makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// No examples at all.
    #[error("the batch has no examples")]
    NoExamples,
    /// An example without tokens.
    #[error("example {0} has no tokens")]
    EmptyExample(usize),
    /// More rows than can be counted.
    #[error("the batch has more than {max} rows", max = u32::MAX)]
    TooManyRows,
    /// Rows to read are not strictly ascending or lie outside of the text.
    #[error("the rows to read must be ascending, distinct, at least one and below {tokens}")]
    ReadRows {
        /// Number of text rows.
        tokens: usize,
    },
    /// An injection into a prefix that does not exist.
    #[error("an injection needs a prefix of at least one row")]
    InjectionWithoutPrefix,
    /// A change of the weights that makes no sense.
    #[error(transparent)]
    Weights(#[from] WeightChangeError),
}

impl PassLayout {
    /// Text rows of the whole batch.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().map(|&n| n as usize).sum()
    }

    /// Text rows that leave the span.
    pub fn output_rows(&self) -> usize {
        self.read_rows.as_ref().map_or_else(|| self.tokens(), Vec::len)
    }

    /// Rows of the prefix.
    pub fn prefix_rows(&self) -> usize {
        self.prefix_len as usize
    }

    /// Whether the prefix's hidden states enter the span as `[prefix_len, hidden]`.
    ///
    /// Under [`Injection::Replace`] and [`Injection::KeysValues`] they never travel: each block's prefix comes from its tables.
    pub fn carries_prefix(&self) -> bool {
        self.prefix_len > 0 && self.injection.carries_prefix()
    }

    /// Prefix rows among those that go through each block. Keys and values lie beside them.
    pub fn hidden_prefix_rows(&self) -> usize {
        if self.injection == Injection::KeysValues { 0 } else { self.prefix_rows() }
    }

    /// Whether the prefix's hidden states leave the span for the next one.
    pub fn returns_prefix(&self) -> bool {
        self.carries_prefix() && self.read_rows.is_none()
    }

    /// Whether the span's blocks get tables of their own, `[span.len(), block_values]` (see [`Self::block_tables`]).
    pub fn has_tables(&self) -> bool {
        self.injection != Injection::None || self.weights != WeightChange::None
    }

    /// Tables of one block of the span, in the order in which they lie back to back: those of the prefix, then those of the weights.
    pub fn block_tables(&self, widths: BlockWidths) -> Vec<BlockTable> {
        let mut tables = self.injection.tables(self.prefix_rows(), widths);
        tables.extend(self.weights.tables(widths));
        tables
    }

    /// Values of all tables of one block.
    pub fn block_values(&self, widths: BlockWidths) -> usize {
        self.block_tables(widths).iter().map(BlockTable::values).sum()
    }

    /// Checks everything that can be checked without knowing the model.
    ///
    /// # Errors
    /// The first [`LayoutError`] found.
    pub fn validate(&self) -> Result<(), LayoutError> {
        if let Some(empty) = self.lengths.iter().position(|&n| n == 0) {
            return Err(LayoutError::EmptyExample(empty));
        }
        self.validate_step()
    }

    /// As [`Self::validate`], for a step of a session: sequences may have no new row, but not all of them.
    ///
    /// # Errors
    /// The first [`LayoutError`] found.
    pub fn validate_step(&self) -> Result<(), LayoutError> {
        if self.lengths.iter().all(|&n| n == 0) {
            return Err(LayoutError::NoExamples);
        }
        let tokens = self.lengths.iter().try_fold(self.prefix_len, |sum, &n| sum.checked_add(n));
        if tokens.is_none() {
            return Err(LayoutError::TooManyRows);
        }
        if self.prefix_len == 0 && self.injection != Injection::None {
            return Err(LayoutError::InjectionWithoutPrefix);
        }
        self.weights.validate()?;
        let tokens = self.tokens();
        if let Some(rows) = &self.read_rows {
            let ascending = rows.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = rows.last().is_some_and(|&last| (last as usize) < tokens);
            if !ascending || !inside {
                return Err(LayoutError::ReadRows { tokens });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adaptation::{Module, Modules};

    const WIDTHS: BlockWidths = BlockWidths { hidden: 8, query: 6, key: 2, intermediate: 20 };

    fn layout() -> PassLayout {
        let span = Span::new(0, 2).unwrap();
        PassLayout {
            span,
            lengths: vec![3, 2],
            prefix_len: 4,
            injection: Injection::Add,
            weights: Default::default(),
            read_rows: None,
        }
    }

    #[test]
    fn counts_rows() {
        let all = layout();
        assert_eq!((all.tokens(), all.output_rows()), (5, 5));
        assert!(all.carries_prefix() && all.returns_prefix() && all.has_tables());
        let last = PassLayout { read_rows: Some(vec![2, 4]), ..layout() };
        assert_eq!(last.output_rows(), 2);
        assert!(last.carries_prefix() && !last.returns_prefix());
        let replace = PassLayout { injection: Injection::Replace, ..layout() };
        assert!(!replace.carries_prefix() && replace.has_tables());
    }

    #[test]
    fn refuses_nonsense() {
        let with = |change: fn(&mut PassLayout)| {
            let mut wrong = layout();
            change(&mut wrong);
            wrong.validate().unwrap_err()
        };
        assert_eq!(layout().validate(), Ok(()));
        assert_eq!(with(|l| l.lengths.clear()), LayoutError::NoExamples);
        assert_eq!(with(|l| l.lengths[1] = 0), LayoutError::EmptyExample(1));
        assert_eq!(with(|l| l.lengths[0] = u32::MAX), LayoutError::TooManyRows);
        assert_eq!(with(|l| l.prefix_len = 0), LayoutError::InjectionWithoutPrefix);
        for rows in [vec![], vec![5], vec![2, 2], vec![3, 1]] {
            let wrong = PassLayout { read_rows: Some(rows), ..layout() };
            assert_eq!(wrong.validate(), Err(LayoutError::ReadRows { tokens: 5 }));
        }
    }

    #[test]
    fn tables_lie_back_to_back_in_a_fixed_order() {
        let modules = [Module::Down, Module::Query].into_iter().collect();
        let layout = PassLayout {
            span: Span::new(0, 2).unwrap(),
            lengths: vec![3],
            prefix_len: 4,
            injection: Injection::KeysValues,
            weights: WeightChange::LowRank { rank: 3, modules },
            read_rows: None,
        };
        let tables = layout.block_tables(WIDTHS);
        let extents: Vec<_> = tables.iter().map(|table| (table.kind, table.rows, table.width)).collect();
        assert_eq!(
            extents,
            [
                (TableKind::KeysValues, 4, 4),
                (TableKind::LowRankA(Module::Query), 3, 8),
                (TableKind::LowRankB(Module::Query), 3, 6),
                (TableKind::LowRankA(Module::Down), 3, 20),
                (TableKind::LowRankB(Module::Down), 3, 8),
            ]
        );
        assert_eq!(layout.block_values(WIDTHS), 4 * 4 + 3 * (8 + 6 + 20 + 8));
        let scaled = PassLayout { weights: WeightChange::Scales { modules: Modules::SCALED }, ..layout };
        assert_eq!(scaled.block_values(WIDTHS), 4 * 4 + 2 + 2 + 20);
    }
}
