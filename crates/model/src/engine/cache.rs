//! What engines keep of sequences that grow.

use std::fmt;
use std::ops::Range;

use super::Engine;
use super::shapes::{Growth, Heads};

/// Keys and values of one sequence in the blocks of one span. A clone shares its memory until one of the two is written to.
///
/// How many positions count is kept by the caller, `len` below; what lies behind them is forgotten.
pub(crate) trait Cache: fmt::Debug + Clone + Send + Sync {
    /// See [`Engine::Rows`].
    type Rows;

    /// Makes room for `count` positions behind `len`, which no other sequence sees. What is far enough behind the window of a block may be given back.
    fn grow(&mut self, len: usize, count: usize);

    /// Writes the keys and values in `rows` of `kv`, `2·key_heads·dim` wide, to block `block` for the positions from `len` on.
    ///
    /// # Panics
    /// If there was no [`Self::grow`] before.
    fn write(&mut self, block: usize, len: usize, kv: &Self::Rows, rows: Range<usize>);

    /// Gives back the memory of positions from `len` on, as far as it can be given back.
    fn truncate(&mut self, len: usize);

    /// The least length that it can be truncated to: what lay before was given back, or is not enough to go on from there.
    fn shortest(&self) -> usize;

    /// Forgets what a step that failed has written behind `len`: it may be anything, NaN included.
    fn abandon(&mut self, len: usize);
}

/// Rows that sequences grow by, before their queries and keys are turned.
#[derive(Debug)]
pub(crate) struct NewRows<'r, E: Engine> {
    /// `[queries, query_heads·dim]`
    pub(crate) queries: E::Rows,
    /// `[rows, 2·key_heads·dim]`
    pub(crate) keys_values: E::Rows,
    /// Angles of the queries, in a block that turns them.
    pub(crate) query_angles: Option<&'r E::Angles>,
    /// Those of the keys.
    pub(crate) key_angles: Option<&'r E::Angles>,
    pub(crate) heads: Heads,
    pub(crate) sinks: Option<&'r E::Rows>,
    /// How each sequence grows, in the order of its rows.
    pub(crate) sequences: &'r [Growth],
}

/// Writes the keys and values of new rows to each sequence's cache.
pub(crate) fn write<C: Cache>(block: usize, keys_values: &C::Rows, sequences: &[Growth], caches: &mut [&mut C]) {
    let mut first = 0;
    for (cache, growth) in caches.iter_mut().zip(sequences) {
        cache.write(block, growth.len, keys_values, first..first + growth.rows);
        first += growth.rows;
    }
}
