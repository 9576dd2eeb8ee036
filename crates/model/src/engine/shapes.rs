//! Who attends to whom: shapes that all engines share.
//!
//! Queries exist for the active rows of a pass only, `[active, query_heads·dim]`; keys and values for all rows, side by side
//! `[rows, 2·key_heads·dim]`. A query of example `e` sees the whole prefix and its own example's keys up to its own position. With
//! `S = scale · Q·Kᵀ` over what it sees, `P = softmax(S)`, `O = P·V`.
//!
//! A backward recomputes `P` from the saved queries, keys and values. With `dO` given: `dV = Pᵀ·dO`, `dP = dO·Vᵀ`, `dS = P ∘ (dP -
//! rowsum(P ∘ dP))`, `dQ = scale · dS·K`, `dK = scale · dSᵀ·Q`. Keys and values of the prefix collect gradients from every example,
//! those of a group of query heads from every head of the group.

use std::ops::Range;

/// Positions of a cache's page, and what caches grow by. A multiple of the kernels' 16 columns; small enough that the unused part of a
/// sequence's last page does not matter.
pub const PAGE_TOKENS: usize = 64;

/// How many heads of which width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key_value: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.query / self.key_value
    }

    pub(crate) fn scale(self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }

    /// Width of a row of queries.
    pub(crate) fn query_width(self) -> usize {
        self.query * self.dim
    }

    /// Width of a row of keys or of values.
    pub(crate) fn key_width(self) -> usize {
        self.key_value * self.dim
    }

    /// Bytes of a cache page of one block.
    pub(crate) fn page_bytes(self) -> u64 {
        (PAGE_TOKENS * 2 * self.key_width() * size_of::<f32>()) as u64
    }
}

/// The prefix or one example: its queries and the keys they may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Rows among the active ones.
    pub(crate) queries: Range<usize>,
    /// Rows of the segment's own keys among all rows.
    pub(crate) keys: Range<usize>,
    /// Rows `0..prefix` are keys that every query of the segment sees besides; 0 for the prefix itself.
    pub(crate) prefix: usize,
}

/// Who attends to whom in a pass.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    /// The prefix, if its rows are active, then the examples in order. Together they cover the active rows.
    pub(crate) segments: Vec<Segment>,
    /// For each active row, how many of its segment's own keys it sees, at least 1.
    pub(crate) visible: Vec<u32>,
}

/// Queries of one sequence that has grown, and what they see of its cache.
#[derive(Debug, Clone)]
pub(crate) struct Grown {
    /// Rows among the step's queries.
    pub(crate) queries: Range<usize>,
    /// For each of the queries, how many positions it sees; ascending, at least 1.
    pub(crate) visible: Vec<usize>,
}

/// A part of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Area {
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Its first column. How many columns it has follows from what it is used with.
    pub(crate) column: usize,
}

/// What the memory of an attention follows from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionSizes {
    /// Text rows of the longest example.
    pub(crate) longest: u64,
    /// Prefix rows.
    pub(crate) prefix: u64,
    /// Number of examples.
    pub(crate) examples: u64,
    pub(crate) heads: Heads,
}
