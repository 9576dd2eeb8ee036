//! Keys and values in pages.
//!
//! A page has [`PAGE_TOKENS`] positions of one sequence for all blocks of a span that see equally far, so that a cache grows without being copied,
//! and what has fallen behind the window of some blocks is given back. Pages are shared between sequences that begin alike (hypotheses of a beam
//! search, sessions with one adapter) and copied when one of them writes.
//! Within a page each block and key head has its keys as `[dim, PAGE_TOKENS]` and its values as `[PAGE_TOKENS, dim]`: both are read
//! by products as they lie.

use std::ops::Range;
use std::sync::Arc;

use super::kept::{Kept, Part, Values};
use super::rows::HostRows;
use crate::device::KvDtype;
use crate::engine::meter::Metered;
use crate::engine::shapes::{Heads, PAGE_TOKENS, first_kept_page};
use crate::engine::{Cache, KvMeter};

/// The pages of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct PagedCache {
    groups: Vec<Group>,
    /// Where each block is: its group, and its number there.
    places: Vec<(usize, usize)>,
    heads: Heads,
    dtype: KvDtype,
    meter: KvMeter,
}

/// The pages of blocks that see equally far.
#[derive(Debug, Clone)]
struct Group {
    window: Option<usize>,
    blocks: usize,
    /// `None` where they are behind the window.
    pages: Vec<Option<Arc<Page>>>,
}

#[derive(Debug)]
struct Page {
    values: Values,
    _metered: Metered,
}

impl Page {
    fn new(values: Values, meter: &KvMeter) -> Arc<Self> {
        let metered = meter.count(values.bytes());
        Arc::new(Self { values, _metered: metered })
    }
}

impl PagedCache {
    /// For blocks with these windows.
    pub(super) fn new(windows: &[Option<usize>], heads: Heads, dtype: KvDtype, meter: &KvMeter) -> Self {
        let (mut groups, mut places) = (Vec::<Group>::new(), Vec::new());
        for &window in windows {
            let group = groups.iter().position(|group| group.window == window).unwrap_or(groups.len());
            if group == groups.len() {
                groups.push(Group { window, blocks: 0, pages: Vec::new() });
            }
            places.push((group, groups[group].blocks));
            groups[group].blocks += 1;
        }
        Self { groups, places, heads, dtype, meter: meter.clone() }
    }

    /// What its keys and values are kept in.
    pub(super) fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// The parts of the pages that belong to a block; nothing of those that were given back.
    ///
    /// # Panics
    /// If they are kept as something else.
    pub(super) fn pages<'a, E: Kept>(&'a self, block: usize) -> Vec<Part<'a, E>> {
        let (group, number) = self.places[block];
        let Heads { key_value, dim, .. } = self.heads;
        let part = |page: &'a Page| {
            let values = E::of(&page.values).expect("pages of the cache's dtype");
            values.heads(number * key_value, key_value, dim)
        };
        self.groups[group].pages.iter().map(|page| page.as_deref().map(part).unwrap_or_default()).collect()
    }

    /// An empty page of so many blocks.
    fn page(&self, blocks: usize) -> Arc<Page> {
        Page::new(Values::new(self.dtype, blocks * self.heads.key_value, self.heads.dim), &self.meter)
    }
}

impl Cache for PagedCache {
    type Rows = HostRows;

    fn grow(&mut self, len: usize, count: usize) {
        let written = len / PAGE_TOKENS..(len + count).div_ceil(PAGE_TOKENS);
        let mut groups = std::mem::take(&mut self.groups);
        for group in &mut groups {
            let kept = first_kept_page(len, group.window);
            group.pages.iter_mut().take(kept).for_each(|page| *page = None);
            for number in written.clone() {
                match group.pages.get_mut(number) {
                    Some(Some(page)) if Arc::strong_count(page) == 1 => {}
                    Some(Some(shared)) => *shared = Page::new(shared.values.clone(), &self.meter),
                    Some(none) => *none = Some(self.page(group.blocks)),
                    None => group.pages.push(Some(self.page(group.blocks))),
                }
            }
        }
        self.groups = groups;
    }

    fn write(&mut self, block: usize, len: usize, kv: &HostRows, rows: Range<usize>) {
        let (group, number) = self.places[block];
        let Heads { key_value, dim, .. } = self.heads;
        for (row, kv) in kv.part(rows).chunks_exact(kv.width()).enumerate() {
            let position = len + row;
            let page = self.groups[group].pages.get_mut(position / PAGE_TOKENS).and_then(Option::as_mut);
            let page = page.and_then(Arc::get_mut).expect("a page of its own");
            page.values.write((number * key_value, dim), position % PAGE_TOKENS, kv);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.groups.iter_mut().for_each(|group| group.pages.truncate(len.div_ceil(PAGE_TOKENS)));
    }

    fn shortest(&self) -> usize {
        let of_group = |group: &Group| {
            let window = group.window?;
            let lost = group.pages.iter().take_while(|page| page.is_none()).count();
            // The first new row sees as many positions as the window has, itself included.
            (lost > 0).then(|| lost * PAGE_TOKENS + window - 1)
        };
        self.groups.iter().filter_map(of_group).max().unwrap_or_default()
    }

    /// The kernels read no positions that are not seen, so what is there does not matter.
    fn abandon(&mut self, _: usize) {}
}
