//! Attention of new rows over caches: what is the same for all blocks that see equally far goes to the device once a step.

use std::sync::OnceLock;

use cubecl::prelude::Runtime;
use petals_kernels::attention::{self as kernel, QueryTile};
use petals_kernels::{self as kernels, Buffer};

use super::attention::{Biases, Tiles, tiles_of};
use super::cache::PagedCache;
use super::rotary::Angles;
use super::rows::GpuRows;
use crate::engine::shapes::{Grown, Growth, Heads};

/// The queries of a step.
#[derive(Debug)]
pub(crate) struct CachedAttention {
    heads: Heads,
    sequences: Vec<Grown>,
    biases: Biases,
    /// Made for the first block, when pages are known.
    ready: OnceLock<Ready>,
}

#[derive(Debug)]
struct Ready {
    tiles: Tiles,
    visible: Buffer,
    /// Numbers of the pages of all sequences, one after the other.
    pages: Buffer,
    /// Where new rows go, if they are known.
    slots: Buffer,
    longest: usize,
    rows: usize,
    /// Positions that queries see, and of which keys and values are read, for each key head.
    read: u64,
}

impl CachedAttention {
    pub(super) fn new<R: Runtime>(gpu: &kernels::Gpu<R>, heads: Heads, sequences: Vec<Grown>) -> Self {
        Self { heads, sequences, biases: Biases::new(gpu, heads), ready: OnceLock::new() }
    }

    fn ready<R: Runtime>(
        &self,
        gpu: &kernels::Gpu<R>,
        block: usize,
        grown: &[Growth],
        caches: &[&mut PagedCache<R>],
    ) -> &Ready {
        self.ready.get_or_init(|| {
            let heads = self.heads;
            let most_rows = self.sequences.iter().map(|grown| grown.queries.len()).max().unwrap_or_default();
            let most = kernel::queries_of_tile(heads.dim, (most_rows * heads.group()).max(1), false);
            let (mut tiles, mut visible, mut pages, mut slots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let (mut longest, mut read) = (0, 0);
            for (number, (sequence, cache)) in self.sequences.iter().zip(caches).enumerate() {
                let first_page = pages.len() as u32;
                pages.extend(cache.pages(block));
                if let Some(growth) = grown.get(number) {
                    slots.extend(cache.slots(block, growth.len, growth.rows));
                }
                let before = tiles.len();
                tiles_of(&mut tiles, heads, most, sequence.queries.clone(), |rows| {
                    let of_rows = rows.start - sequence.queries.start..rows.end - sequence.queries.start;
                    let seen = &sequence.visible[of_rows];
                    let from = seen.iter().map(|seen| seen.start).min().unwrap_or_default();
                    let to = seen.iter().map(|seen| seen.end).max().unwrap_or_default();
                    [first_page, 0, from as u32, to as u32]
                });
                for tile in &tiles[before..] {
                    longest = longest.max((tile.to - tile.from) as usize);
                    read += u64::from(tile.to - tile.from);
                }
                visible.extend(sequence.visible.iter().flat_map(|seen| [seen.start as u32, seen.end as u32]));
            }
            let (count, rows) = (tiles.len(), visible.len() / 2);
            let [tiles, visible, pages, slots] = gpu.upload_runs([&QueryTile::words(&tiles), &visible, &pages, &slots]);
            Ready { tiles: Tiles { tiles, count, most }, visible, pages, slots, longest, rows, read }
        })
    }

    /// Turns queries in place, and keys as they are written to the caches with their values.
    pub(super) fn keep<R: Runtime>(
        &self,
        gpu: &kernels::Gpu<R>,
        block: usize,
        (q, of_q): (&GpuRows, Option<&Angles>),
        (kv, of_k): (&GpuRows, Option<&Angles>),
        grown: &[Growth],
        caches: &[&mut PagedCache<R>],
    ) {
        let Some(cache) = caches.first() else { return };
        let ready = self.ready(gpu, block, grown, caches);
        let angles = of_q.or(of_k);
        let turning = kernels::Turning {
            queries: (&q.values, q.height, of_q.map(Angles::cos_sin)),
            keys_values: (&kv.values, kv.height, of_k.map(Angles::cos_sin)),
            heads: [self.heads.query, self.heads.key_value, self.heads.dim],
            pairs: angles.map_or(0, Angles::pairs),
            interleaved: angles.is_some_and(Angles::is_interleaved),
            slots: &ready.slots,
        };
        cache.pool().with_block(block, |pages| kernels::turn_and_keep(gpu, turning, pages));
    }

    /// See [`crate::engine::Engine::attend_cached`].
    pub(super) fn forward<R: Runtime>(
        &self,
        gpu: &kernels::Gpu<R>,
        block: usize,
        (q, sinks): (&GpuRows, Option<&GpuRows>),
        caches: &[&mut PagedCache<R>],
        output: &GpuRows,
    ) {
        let Some(cache) = caches.first() else { return };
        let Ready { tiles, visible, pages, longest, rows, read, .. } = self.ready(gpu, block, &[], caches);
        let Tiles { tiles, count, most } = tiles;
        let queries = kernel::Queries { tiles, count: *count, most: *most, visible, rows: *rows };
        let heads = self.biases.heads(self.heads, sinks);
        let of_position = self.heads.page_bytes(cache.pool().dtype) / crate::PAGE_TOKENS as u64;
        gpu.read(read * of_position);
        cache.pool().with_block(block, |kv| {
            kernel::grown(gpu, heads, &queries, &q.values, (kv, pages), &output.values, *longest);
        });
    }
}
