//! The memory that caches take their pages from: for each block one buffer, which grows as pages are needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cubecl::prelude::Runtime;
use petals_kernels::{self as kernels, Buffer, Kept, Kv};

use crate::device::KvDtype;
use crate::engine::KvMeter;
use crate::engine::meter::Metered;
use crate::engine::shapes::Heads;

/// Fewest pages that a buffer grows by.
const LEAST: usize = 4;

/// The pools of a device, by what their caches have in common. Those that no cache uses are gone.
#[derive(Debug)]
pub(super) struct Pools<R: Runtime>(Mutex<HashMap<Key, Weak<Pool<R>>>>);

impl<R: Runtime> Default for Pools<R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Windows of the blocks, key heads, values of a head, and how they are kept.
type Key = (Vec<Option<usize>>, usize, usize, KvDtype);

/// The pages of caches of the same blocks.
#[derive(Debug)]
pub(crate) struct Pool<R: Runtime> {
    pub(super) gpu: kernels::Gpu<R>,
    pub(super) heads: Heads,
    pub(super) dtype: KvDtype,
    /// Blocks that see equally far.
    pub(super) groups: Vec<Group>,
    /// Where each block is: its group, and its number there.
    pub(super) places: Vec<(usize, usize)>,
}

/// The pages of blocks that see equally far.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) window: Option<usize>,
    blocks: usize,
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug)]
struct Pages {
    /// Words, and scales if there are any, of each block.
    blocks: Vec<(Buffer, Option<Buffer>)>,
    capacity: usize,
    /// Numbers of pages that nobody has.
    free: Vec<u32>,
}

/// A page of the blocks of a group, which goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Page {
    number: u32,
    pages: Arc<Mutex<Pages>>,
    _metered: Metered,
}

impl Page {
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        lock(&self.pages).free.push(self.number);
    }
}

/// What is behind the lock is changed in single steps, so poison is ignored.
fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Runtime> Pools<R> {
    /// The pool for caches of blocks with these windows.
    pub(super) fn pool(
        &self,
        gpu: &kernels::Gpu<R>,
        windows: &[Option<usize>],
        heads: Heads,
        dtype: KvDtype,
    ) -> Arc<Pool<R>> {
        let key = (windows.to_vec(), heads.key_value, heads.dim, dtype);
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.strong_count() > 0);
        if let Some(pool) = pools.get(&key).and_then(Weak::upgrade) {
            return pool;
        }
        let pool = Arc::new(Pool::new(gpu.clone(), windows, heads, dtype));
        pools.insert(key, Arc::downgrade(&pool));
        pool
    }
}

impl<R: Runtime> Pool<R> {
    fn new(gpu: kernels::Gpu<R>, windows: &[Option<usize>], heads: Heads, dtype: KvDtype) -> Self {
        let (mut groups, mut places) = (Vec::<Group>::new(), Vec::new());
        for &window in windows {
            let group = groups.iter().position(|group| group.window == window).unwrap_or(groups.len());
            if group == groups.len() {
                let pages = Pages { blocks: Vec::new(), capacity: 0, free: Vec::new() };
                groups.push(Group { window, blocks: 0, pages: Arc::new(Mutex::new(pages)) });
            }
            places.push((group, groups[group].blocks));
            groups[group].blocks += 1;
        }
        for group in &groups {
            let none = || (gpu.empty(0), (kept(dtype) == Kept::Int8).then(|| gpu.empty(0)));
            lock(&group.pages).blocks = (0..group.blocks).map(|_| none()).collect();
        }
        Self { gpu, heads, dtype, groups, places }
    }

    fn sizes(&self) -> [usize; 2] {
        let (kept, heads) = (kept(self.dtype), self.heads);
        [kept.words_of_page(heads.key_value, heads.dim), kept.scales_of_page(heads.key_value)]
    }

    /// A page of a group, of whatever was there before.
    pub(super) fn page(&self, group: usize, meter: &KvMeter) -> Arc<Page> {
        let Group { blocks, pages, .. } = &self.groups[group];
        let number = {
            let mut pages = lock(pages);
            if pages.free.is_empty() {
                self.grow(&mut pages);
            }
            pages.free.pop().unwrap_or_default()
        };
        let metered = meter.count(*blocks as u64 * self.heads.page_bytes(self.dtype));
        Arc::new(Page { number, pages: Arc::clone(pages), _metered: metered })
    }

    /// Makes buffers larger, one block after the other, so that little is there twice at a time.
    fn grow(&self, pages: &mut Pages) {
        let (old, [words, scales]) = (pages.capacity, self.sizes());
        let new = old + (old / 4).max(LEAST);
        for (of_words, of_scales) in &mut pages.blocks {
            *of_words = self.larger(of_words, new * words);
            *of_scales = of_scales.take().map(|of_scales| self.larger(&of_scales, new * scales));
        }
        pages.capacity = new;
        pages.free.extend((old as u32..new as u32).rev());
    }

    fn larger(&self, old: &Buffer, len: usize) -> Buffer {
        let new = self.gpu.empty(len);
        kernels::copy(&self.gpu, (old, 0), (&new, 0), old.len());
        new
    }

    /// A page with the same in it.
    pub(super) fn copy(&self, group: usize, page: &Page, meter: &KvMeter) -> Arc<Page> {
        let copy = self.page(group, meter);
        let (heads, kept) = ([self.heads.key_value, self.heads.dim], kept(self.dtype));
        for (words, scales) in &lock(&page.pages).blocks {
            let pages = Kv { kept, words, scales: scales.as_ref() };
            kernels::copy_page(&self.gpu, pages, heads, page.number as usize, copy.number as usize);
        }
        copy
    }

    /// Does something with the pages of a block.
    pub(super) fn with_block<T>(&self, block: usize, act: impl FnOnce(Kv<'_>) -> T) -> T {
        let (group, number) = self.places[block];
        let pages = lock(&self.groups[group].pages);
        let (words, scales) = &pages.blocks[number];
        act(Kv { kept: kept(self.dtype), words, scales: scales.as_ref() })
    }
}

/// What kernels call it.
fn kept(dtype: KvDtype) -> Kept {
    match dtype {
        KvDtype::Auto | KvDtype::F32 => Kept::F32,
        KvDtype::Bf16 => Kept::Bf16,
        KvDtype::F16 => Kept::F16,
        KvDtype::Int8 => Kept::Int8,
    }
}
