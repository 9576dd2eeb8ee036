//! The keys and values of sequences that grow: what a session leaves on a server between its steps.
//!
//! On the CPU they lie in pages of [`PAGE_TOKENS`] positions, each for all blocks of a span, so that a cache grows without
//! being copied. Pages are shared between sequences that begin alike (hypotheses of a beam search, sessions with one
//! adapter) and copied when one of them writes. Within a page each block and key head has its keys as `[dim, PAGE_TOKENS]`
//! and its values as `[PAGE_TOKENS, dim]`: both are read by products as they lie.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use petals_protocol::Span;

use crate::config::ModelConfig;
use crate::device::Device;
use crate::kernels::cached_attention;
use crate::ops::attention::Heads;
use crate::tensor::{Tensor, from_vec, rows};

/// Positions of a page. A multiple of the kernels' 16 columns; small enough that the unused part of a sequence's last page
/// does not matter.
pub const PAGE_TOKENS: usize = 64;

/// Bytes of all cache pages that were made with it and still exist.
#[derive(Debug, Clone, Default)]
pub struct KvMeter(Arc<AtomicU64>);

impl KvMeter {
    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keys and values of one sequence in the blocks of one span, for positions `0..len`.
///
/// A clone shares its pages until one of the two is written to.
#[derive(Debug, Clone)]
pub struct KvCache {
    span: Span,
    shape: PageShape,
    storage: Storage,
    len: usize,
    meter: KvMeter,
}

#[derive(Debug, Clone)]
enum Storage {
    Pages(Vec<Arc<Page>>),
    /// Keys beside values of each block, `[positions, 2·key_heads·dim]`, on a device with burn's operations.
    Device(Vec<Option<Tensor<2>>>),
}

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageShape {
    blocks: usize,
    key_heads: usize,
    dim: usize,
}

impl PageShape {
    /// Values of one block.
    fn block_len(self) -> usize {
        self.key_heads * cached_attention::head_len(self.dim)
    }

    fn bytes(self) -> u64 {
        (self.blocks * self.block_len() * size_of::<f32>()) as u64
    }
}

#[derive(Debug)]
struct Page {
    values: Vec<f32>,
    meter: KvMeter,
}

impl Page {
    fn new(values: Vec<f32>, meter: &KvMeter) -> Arc<Self> {
        meter.0.fetch_add((values.len() * size_of::<f32>()) as u64, Ordering::Relaxed);
        Arc::new(Self { values, meter: meter.clone() })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.meter.0.fetch_sub((self.values.len() * size_of::<f32>()) as u64, Ordering::Relaxed);
    }
}

impl KvCache {
    pub(crate) fn new(span: Span, heads: Heads, device: &Device, meter: &KvMeter) -> Self {
        let shape = PageShape { blocks: span.len(), key_heads: heads.key_value, dim: heads.dim };
        let storage =
            if device.has_kernels() { Storage::Pages(Vec::new()) } else { Storage::Device(vec![None; span.len()]) };
        Self { span, shape, storage, len: 0, meter: meter.clone() }
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
        match &mut self.storage {
            Storage::Pages(pages) => pages.truncate(self.len.div_ceil(PAGE_TOKENS)),
            Storage::Device(blocks) => {
                for block in blocks {
                    *block = block.take().filter(|_| self.len > 0).map(|kept| rows(&kept, 0..self.len));
                }
            }
        }
    }

    /// Makes room for `count` more positions that no other sequence sees.
    pub(crate) fn grow(&mut self, count: usize) {
        let Storage::Pages(pages) = &mut self.storage else { return };
        let written = self.len / PAGE_TOKENS..(self.len + count).div_ceil(PAGE_TOKENS);
        for number in written {
            match pages.get_mut(number) {
                Some(page) if Arc::strong_count(page) == 1 => {}
                Some(shared) => *shared = Page::new(shared.values.clone(), &self.meter),
                None => pages.push(Page::new(vec![0.0; self.shape.blocks * self.shape.block_len()], &self.meter)),
            }
        }
    }

    /// Writes keys and values of the positions behind the last for block `block` of the span; `kv` has rows of
    /// `2·key_heads·dim`. They count only after [`Self::commit`].
    ///
    /// # Panics
    /// If there was no [`Self::grow`] before.
    pub(crate) fn write(&mut self, block: usize, kv: &[f32], device: &Device) {
        let PageShape { key_heads, dim, .. } = self.shape;
        let width = 2 * key_heads * dim;
        match &mut self.storage {
            Storage::Pages(pages) => {
                let part = block * self.shape.block_len()..(block + 1) * self.shape.block_len();
                for (row, kv) in kv.chunks_exact(width).enumerate() {
                    let position = self.len + row;
                    let page = pages.get_mut(position / PAGE_TOKENS).and_then(Arc::get_mut).expect("a page of its own");
                    cached_attention::write(&mut page.values[part.clone()], dim, position % PAGE_TOKENS, kv);
                }
            }
            Storage::Device(blocks) => {
                let new = from_vec(kv.to_vec(), [kv.len() / width, width], device.raw());
                let kept = blocks[block].take().filter(|_| self.len > 0).map(|kept| rows(&kept, 0..self.len));
                blocks[block] = Some(match kept {
                    Some(kept) => Tensor::cat(vec![kept, new], 0),
                    None => new,
                });
            }
        }
    }

    /// The parts of the pages that belong to a block.
    pub(crate) fn pages(&self, block: usize) -> Vec<&[f32]> {
        let part: Range<usize> = block * self.shape.block_len()..(block + 1) * self.shape.block_len();
        match &self.storage {
            Storage::Pages(pages) => pages.iter().map(|page| &page.values[part.clone()]).collect(),
            Storage::Device(_) => Vec::new(),
        }
    }

    /// Keys beside values of a block on a device without kernels, those not committed yet included.
    pub(crate) fn on_device(&self, block: usize) -> Option<Tensor<2>> {
        match &self.storage {
            Storage::Pages(_) => None,
            Storage::Device(blocks) => blocks.get(block).cloned().flatten(),
        }
    }

    /// Takes `rows` positions that were written into the sequence.
    pub(crate) fn commit(&mut self, rows: usize) {
        self.len += rows;
    }
}

impl ModelConfig {
    /// Bytes of a cache page ([`PAGE_TOKENS`] positions of one sequence) of `blocks` blocks.
    pub fn kv_page_bytes(&self, blocks: usize) -> u64 {
        PageShape { blocks, key_heads: self.num_key_value_heads, dim: self.head_dim }.bytes()
    }
}
