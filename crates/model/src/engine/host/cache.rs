//! Keys and values in pages.
//!
//! A page has [`PAGE_TOKENS`] positions of one sequence for all blocks of a span, so that a cache grows without being copied. Pages are
//! shared between sequences that begin alike (hypotheses of a beam search, sessions with one adapter) and copied when one of them writes.
//! Within a page each block and key head has its keys as `[dim, PAGE_TOKENS]` and its values as `[PAGE_TOKENS, dim]`: both are read
//! by products as they lie.

use std::ops::Range;
use std::sync::Arc;

use super::cached_attention;
use super::rows::HostRows;
use crate::engine::meter::Metered;
use crate::engine::shapes::{Heads, PAGE_TOKENS};
use crate::engine::{Cache, KvMeter};

/// The pages of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct PagedCache {
    pages: Vec<Arc<Page>>,
    blocks: usize,
    heads: Heads,
    meter: KvMeter,
}

#[derive(Debug)]
struct Page {
    values: Vec<f32>,
    _metered: Metered,
}

impl Page {
    fn new(values: Vec<f32>, meter: &KvMeter) -> Arc<Self> {
        let metered = meter.count((values.len() * size_of::<f32>()) as u64);
        Arc::new(Self { values, _metered: metered })
    }
}

impl PagedCache {
    pub(super) fn new(blocks: usize, heads: Heads, meter: &KvMeter) -> Self {
        Self { pages: Vec::new(), blocks, heads, meter: meter.clone() }
    }

    /// The parts of the pages that belong to a block.
    pub(super) fn pages(&self, block: usize) -> Vec<&[f32]> {
        let part = self.part(block);
        self.pages.iter().map(|page| &page.values[part.clone()]).collect()
    }

    fn part(&self, block: usize) -> Range<usize> {
        let length = self.heads.key_value * cached_attention::head_len(self.heads.dim);
        block * length..(block + 1) * length
    }
}

impl Cache for PagedCache {
    type Rows = HostRows;

    fn grow(&mut self, len: usize, count: usize) {
        let written = len / PAGE_TOKENS..(len + count).div_ceil(PAGE_TOKENS);
        for number in written {
            match self.pages.get_mut(number) {
                Some(page) if Arc::strong_count(page) == 1 => {}
                Some(shared) => *shared = Page::new(shared.values.clone(), &self.meter),
                None => self.pages.push(Page::new(vec![0.0; self.part(self.blocks).start], &self.meter)),
            }
        }
    }

    fn write(&mut self, block: usize, len: usize, kv: &HostRows, rows: Range<usize>) {
        let (part, dim) = (self.part(block), self.heads.dim);
        for (row, kv) in kv.part(rows).chunks_exact(kv.width()).enumerate() {
            let position = len + row;
            let page = self.pages.get_mut(position / PAGE_TOKENS).and_then(Arc::get_mut).expect("a page of its own");
            cached_attention::write(&mut page.values[part.clone()], dim, position % PAGE_TOKENS, kv);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.pages.truncate(len.div_ceil(PAGE_TOKENS));
    }

    /// The kernels read no positions that are not seen, so what is there does not matter.
    fn abandon(&mut self, _: usize) {}
}
