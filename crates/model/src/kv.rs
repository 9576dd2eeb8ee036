//! The keys and values of sequences that grow: what a session leaves on a server between its steps.

use petals_protocol::Span;

use crate::config::ModelConfig;
use crate::device::{Device, KvDtype};
use crate::engine::shapes::{WINDOWED_STEP, most_pages};
use crate::engine::{Cache, Engine, OnEngine, PerEngine, on_engine};

/// Where keys and values are kept: [`Engine::Cache`].
pub(crate) enum Caches {}

impl PerEngine for Caches {
    type On<E: Engine> = E::Cache;
}

/// Keys and values of one sequence in the blocks of one span, for positions `0..len`, on the devices of these blocks.
///
/// A clone shares its memory until one of the two is written to.
#[derive(Debug, Clone)]
pub struct KvCache {
    span: Span,
    len: usize,
    /// Whether the sequence may grow longer than texts of pre-training.
    long: bool,
    /// Of each part of the stack that has blocks of the span.
    parts: Vec<CachePart>,
}

/// What is kept on one device.
#[derive(Debug, Clone)]
pub(crate) struct CachePart {
    pub(crate) span: Span,
    pub(crate) device: Device,
    pub(crate) storage: OnEngine<Caches>,
}

impl KvCache {
    pub(crate) fn new(span: Span, long: bool, parts: Vec<CachePart>) -> Self {
        Self { span, len: 0, long, parts }
    }

    /// Whether the rotary frequencies of long texts hold for it.
    pub(crate) fn is_long(&self) -> bool {
        self.long
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

    /// The least length that it can be truncated to: blocks with windows give back what they have left behind.
    pub fn shortest(&self) -> usize {
        let of_part = |part: &CachePart| on_engine!(&part.storage, cache => cache.shortest());
        self.parts.iter().map(of_part).max().unwrap_or_default()
    }

    /// Forgets all positions from `len` on, which is not below [`Self::shortest`].
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for part in &mut self.parts {
            on_engine!(&mut part.storage, cache => cache.truncate(self.len));
        }
    }

    /// What is kept in the part `number` of the span.
    pub(crate) fn part(&mut self, number: usize) -> Option<&mut CachePart> {
        self.parts.get_mut(number)
    }

    /// Whether it is divided as `parts` say.
    pub(crate) fn lies<'a>(&'a self, parts: impl Iterator<Item = (Span, &'a Device)>) -> bool {
        parts.eq(self.parts.iter().map(|part| (part.span, &part.device)))
    }

    /// Forgets what a step that failed has written in any part.
    pub(crate) fn abandon(&mut self) {
        for part in &mut self.parts {
            on_engine!(&mut part.storage, cache => cache.abandon(self.len));
        }
    }

    /// Takes `rows` positions that were written into the sequence.
    pub(crate) fn commit(&mut self, rows: usize) {
        self.len += rows;
    }
}

impl ModelConfig {
    /// Bytes of a cache page ([`crate::PAGE_TOKENS`] positions of one sequence) of `blocks` blocks, kept in `dtype`.
    pub fn kv_page_bytes(&self, blocks: usize, dtype: KvDtype) -> u64 {
        blocks as u64 * self.heads().page_bytes(dtype)
    }

    /// Most bytes that the cache of a sequence of up to `positions` takes in the blocks of `span`, of which those with a window keep
    /// little more than it.
    pub fn kv_bytes(&self, span: Span, positions: u64, dtype: KvDtype) -> u64 {
        let of_block = |window| most_pages(positions, window).saturating_mul(self.heads().page_bytes(dtype));
        self.windows_of(span).into_iter().map(of_block).fold(0, u64::saturating_add)
    }

    /// Most rows that a step may add to a sequence in the blocks of `span`.
    pub fn longest_step(&self, span: Span) -> usize {
        let any = self.windows_of(span).iter().any(Option::is_some);
        if any { WINDOWED_STEP } else { usize::MAX }
    }

    /// The window of each block of `span` that the model has.
    pub(crate) fn windows_of(&self, span: Span) -> Vec<Option<usize>> {
        let layers = span.blocks().filter_map(|block| self.layers.get(block as usize));
        layers.map(|layer| layer.window).collect()
    }
}
