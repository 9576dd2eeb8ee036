//! The keys and values of sequences that grow: what a session leaves on a server between its steps.

use petals_protocol::Span;

use crate::config::ModelConfig;
use crate::engine::{Cache, Engine, OnEngine, PerEngine, on_engine};

/// Where keys and values are kept: [`Engine::Cache`].
pub(crate) enum Caches {}

impl PerEngine for Caches {
    type On<E: Engine> = E::Cache;
}

/// Keys and values of one sequence in the blocks of one span, for positions `0..len`, on the device of these blocks.
///
/// A clone shares its memory until one of the two is written to.
#[derive(Debug, Clone)]
pub struct KvCache {
    span: Span,
    len: usize,
    storage: OnEngine<Caches>,
}

impl KvCache {
    pub(crate) fn new(span: Span, storage: OnEngine<Caches>) -> Self {
        Self { span, len: 0, storage }
    }

    /// The blocks whose keys and values are kept.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Positions kept.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        on_engine!(&mut self.storage, cache => cache.truncate(self.len));
    }

    /// Where keys and values are kept.
    pub(crate) fn storage(&mut self) -> &mut OnEngine<Caches> {
        &mut self.storage
    }

    /// Takes `rows` positions that were written into the sequence.
    pub(crate) fn commit(&mut self, rows: usize) {
        self.len += rows;
    }
}

impl ModelConfig {
    /// Bytes of a cache page ([`crate::PAGE_TOKENS`] positions of one sequence) of `blocks` blocks.
    pub fn kv_page_bytes(&self, blocks: usize) -> u64 {
        blocks as u64 * self.heads().page_bytes()
    }
}
