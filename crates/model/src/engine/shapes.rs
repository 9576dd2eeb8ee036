//! Who attends to whom: shapes that all engines share.
//!
//! Queries exist for the active rows of a pass only, `[active, query_heads·dim]`; keys and values for all rows, side by side
//! `[rows, 2·key_heads·dim]`. A query of example `e` sees the prefix and its own example's keys up to its own position, or as many of those
//! as its window lets it. With `S = cap(scale · Q·Kᵀ) + bias` over what it sees, `P = softmax(S)`, `O = P·V`; `cap` is a soft cap or nothing, `bias`
//! that of ALiBi or zero. A head's sink is one more score in the softmax, which goes to no value.
//!
//! A backward recomputes `P` from the saved queries, keys and values. With `dO` given: `dV = Pᵀ·dO`, `dP = dO·Vᵀ`, `dS = P ∘ (dP -
//! rowsum(P ∘ dP))`, times `1 - (cap(s)/c)²` where scores are capped, `dQ = scale · dS·K`, `dK = scale · dSᵀ·Q`. Keys and values of the prefix collect
//! gradients from every example, those of a group of query heads from every head of the group.

use std::ops::Range;

use super::rotary::Place;
use crate::config::Alibi;
use crate::device::KvDtype;

/// Positions of a cache's page, and what caches grow by. A multiple of the kernels' 16 columns; small enough that the unused part of a
/// sequence's last page does not matter.
pub const PAGE_TOKENS: usize = 64;

/// Positions behind a window that are kept, so that a sequence may go back a little: foreseen tokens that were wrong, words taken back.
const BEHIND_WINDOW: usize = 2 * PAGE_TOKENS;
/// Most rows that a step may add to a sequence where some blocks have windows, so that what is kept of them is bounded.
pub(crate) const WINDOWED_STEP: usize = 1024;

/// The first page that a sequence of `len` positions needs when it grows; those before are behind the window.
pub(crate) fn first_kept_page(len: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (len + 1).saturating_sub(window + BEHIND_WINDOW) / PAGE_TOKENS)
}

/// Most pages that a sequence of up to `positions` has at a time.
pub(crate) fn most_pages(positions: u64, window: Option<usize>) -> u64 {
    let page = PAGE_TOKENS as u64;
    let all = positions.div_ceil(page);
    let reach = |window: usize| (window + BEHIND_WINDOW + WINDOWED_STEP) as u64;
    window.map_or(all, |window| all.min(reach(window).div_ceil(page).saturating_add(1)))
}

/// How many heads of which width, and what becomes of their scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key_value: usize,
    pub(crate) dim: usize,
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) alibi: Option<Alibi>,
}

impl Heads {
    /// Query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.query / self.key_value
    }

    /// ALiBi's biases of keys at positions `0..seen`, for each query head, `[query, seen]`; empty without ALiBi.
    pub(crate) fn biases(self, seen: usize) -> Vec<f32> {
        let Some(alibi) = self.alibi else { return Vec::new() };
        let slopes = alibi.slopes(self.query);
        slopes.iter().flat_map(|&slope| (0..seen).map(move |position| alibi.bias(slope, position))).collect()
    }

    /// Width of a row of queries.
    pub(crate) fn query_width(self) -> usize {
        self.query * self.dim
    }

    /// Width of a row of keys or of values.
    pub(crate) fn key_width(self) -> usize {
        self.key_value * self.dim
    }

    /// Bytes of a cache page of one block whose keys and values are kept in `dtype`.
    pub(crate) fn page_bytes(self, dtype: KvDtype) -> u64 {
        (PAGE_TOKENS * 2 * self.key_value * dtype.bytes(self.dim)) as u64
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
    /// For each active row, which positions it sees of those of its segment's prefix and own keys, counted through; not empty.
    pub(crate) visible: Vec<Range<u32>>,
}

/// How a sequence grows: `rows` behind `len`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    pub(crate) len: usize,
    pub(crate) rows: usize,
    /// See [`super::rotary::Place`].
    pub(crate) long: bool,
}

impl Growth {
    /// Where its new rows are.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let long = self.long;
        (self.len..self.len + self.rows).map(move |position| Place { position: position as u32, long })
    }
}

/// Queries of one sequence that has grown, and what they see of its cache.
#[derive(Debug, Clone)]
pub(crate) struct Grown {
    /// Rows among the step's queries.
    pub(crate) queries: Range<usize>,
    /// For each of the queries, which positions it sees; ends ascend, and none is empty.
    pub(crate) visible: Vec<Range<usize>>,
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
