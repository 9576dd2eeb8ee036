//! Keys and values of a sequence in pages on a GPU: as on the host ([`crate::engine::host`]), but that a page is a number.

use std::ops::Range;
use std::sync::Arc;

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::pool::{Page, Pool};
use super::rows::GpuRows;
use crate::engine::shapes::{PAGE_TOKENS, first_kept_page};
use crate::engine::{Cache, KvMeter};

/// The pages of one sequence.
pub(crate) struct PagedCache<R: Runtime> {
    pool: Arc<Pool<R>>,
    /// Of each group of blocks; `None` where they are behind the window.
    groups: Vec<Vec<Option<Arc<Page>>>>,
    meter: KvMeter,
}

impl<R: Runtime> Clone for PagedCache<R> {
    fn clone(&self) -> Self {
        Self { pool: Arc::clone(&self.pool), groups: self.groups.clone(), meter: self.meter.clone() }
    }
}

impl<R: Runtime> std::fmt::Debug for PagedCache<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagedCache").field("groups", &self.groups).finish_non_exhaustive()
    }
}

impl<R: Runtime> PagedCache<R> {
    pub(super) fn new(pool: Arc<Pool<R>>, meter: &KvMeter) -> Self {
        let groups = vec![Vec::new(); pool.groups.len()];
        Self { pool, groups, meter: meter.clone() }
    }

    pub(super) fn pool(&self) -> &Pool<R> {
        &self.pool
    }

    /// The numbers of the pages of a block; of those that were given back any.
    pub(super) fn pages(&self, block: usize) -> impl Iterator<Item = u32> + '_ {
        let (group, _) = self.pool.places[block];
        self.groups[group].iter().map(|page| page.as_ref().map_or(0, |page| page.number()))
    }

    /// Where the positions from `len` on go in a block.
    pub(super) fn slots(&self, block: usize, len: usize, count: usize) -> impl Iterator<Item = u32> + '_ {
        let (group, _) = self.pool.places[block];
        (len..len + count).map(move |position| {
            let page = self.groups[group].get(position / PAGE_TOKENS).and_then(Option::as_ref);
            let page = page.expect("room was made before").number() as usize;
            (page * PAGE_TOKENS + position % PAGE_TOKENS) as u32
        })
    }
}

impl<R: Runtime> Cache for PagedCache<R> {
    type Rows = GpuRows;

    fn grow(&mut self, len: usize, count: usize) {
        let written = len / PAGE_TOKENS..(len + count).div_ceil(PAGE_TOKENS);
        for (number, pages) in self.groups.iter_mut().enumerate() {
            let kept = first_kept_page(len, self.pool.groups[number].window);
            pages.iter_mut().take(kept).for_each(|page| *page = None);
            for at in written.clone() {
                match pages.get_mut(at) {
                    Some(Some(page)) if Arc::strong_count(page) == 1 => {}
                    Some(Some(shared)) => *shared = self.pool.copy(number, shared, &self.meter),
                    Some(none) => *none = Some(self.pool.page(number, &self.meter)),
                    None => pages.push(Some(self.pool.page(number, &self.meter))),
                }
            }
        }
    }

    fn write(&mut self, block: usize, len: usize, kv: &GpuRows, rows: Range<usize>) {
        let pool = &self.pool;
        let slots: Vec<u32> = self.slots(block, len, rows.len()).collect();
        let slots = pool.gpu.upload_words(&slots);
        let part = pool.gpu.empty(rows.len() * kv.width);
        kernels::copy(&pool.gpu, (&kv.values, rows.start * kv.width), (&part, 0), part.len());
        let turning = kernels::Turning {
            queries: (&part, 0, None),
            keys_values: (&part, rows.len(), None),
            heads: [pool.heads.query, pool.heads.key_value, pool.heads.dim],
            pairs: 0,
            interleaved: false,
            slots: &slots,
        };
        pool.with_block(block, |pages| kernels::turn_and_keep(&pool.gpu, turning, pages));
    }

    fn truncate(&mut self, len: usize) {
        self.groups.iter_mut().for_each(|pages| pages.truncate(len.div_ceil(PAGE_TOKENS)));
    }

    fn shortest(&self) -> usize {
        let of_group = |(pages, group): (&Vec<Option<Arc<Page>>>, &super::pool::Group)| {
            let window = group.window?;
            let lost = pages.iter().take_while(|page| page.is_none()).count();
            // The first new row sees as many positions as the window has, itself included.
            (lost > 0).then(|| lost * PAGE_TOKENS + window - 1)
        };
        self.groups.iter().zip(&self.pool.groups).filter_map(of_group).max().unwrap_or_default()
    }

    /// The kernels read no positions that are not seen, so what is there does not matter.
    fn abandon(&mut self, _: usize) {}
}
