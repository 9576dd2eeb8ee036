//! Keys and values on a device, written in place.
//!
//! Each block has its keys and its values as `[key_heads, capacity, dim]`, so that what is kept in f32 is read by products as it lies; what is kept narrower
//! ([`Kept`]) is widened for them, a block at a time. They grow by [`PAGE_TOKENS`] positions at a time: a step writes its own rows and nothing else, but for
//! one copy in so many. What two sequences share is copied as a whole when one of them writes.

use std::ops::Range;
use std::sync::Arc;

use super::kept::Kept;
use super::tensor::{RawDevice, Tensor, columns, rows};
use crate::device::KvDtype;
use crate::engine::meter::Metered;
use crate::engine::shapes::{Heads, PAGE_TOKENS};
use crate::engine::{Cache, KvMeter};

/// The keys and values of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct GrowingCache {
    kept: Arc<Blocks>,
    heads: Heads,
    dtype: KvDtype,
    device: RawDevice,
    meter: KvMeter,
}

#[derive(Debug)]
struct Blocks {
    /// `None` if there is no capacity.
    blocks: Vec<Option<KeysValues>>,
    capacity: usize,
    _metered: Metered,
}

/// Of one block, `[key_heads, capacity, dim]` each. Slots that were never written are zero.
#[derive(Debug, Clone)]
struct KeysValues {
    keys: Kept,
    values: Kept,
}

impl GrowingCache {
    pub(super) fn new(blocks: usize, heads: Heads, dtype: KvDtype, device: &RawDevice, meter: &KvMeter) -> Self {
        let kept = Blocks { blocks: vec![None; blocks], capacity: 0, _metered: meter.count(0) };
        Self { kept: Arc::new(kept), heads, dtype, device: device.clone(), meter: meter.clone() }
    }

    /// Keys and values of a block for positions `0..len`, `[key_heads, len, dim]` in f32, at most those that there is room for.
    ///
    /// # Panics
    /// If nothing was ever written.
    pub(super) fn first(&self, block: usize, len: usize) -> [Tensor<3>; 2] {
        let KeysValues { keys, values } = self.kept.blocks[block].clone().expect("something was written");
        [keys, values].map(|all| if len == self.kept.capacity { all } else { all.first(len) }.widened())
    }

    /// Replaces what is kept by something else of a new capacity, which is not 0.
    fn replace(&mut self, capacity: usize, change: impl Fn(Option<Kept>) -> Kept) {
        let changed = |kept: &Option<KeysValues>| {
            let (keys, values) = kept.clone().map(|kept| (kept.keys, kept.values)).unzip();
            Some(KeysValues { keys: change(keys), values: change(values) })
        };
        let blocks = self.kept.blocks.iter().map(changed).collect::<Vec<_>>();
        let pages = (capacity / PAGE_TOKENS) as u64;
        let metered = self.meter.count(blocks.len() as u64 * pages * self.heads.page_bytes(self.dtype));
        self.kept = Arc::new(Blocks { blocks, capacity, _metered: metered });
    }

    fn zeros(&self, positions: usize) -> Kept {
        Kept::zeros([self.heads.key_value, positions, self.heads.dim], self.dtype, &self.device)
    }

    /// The first `len` positions, filled up with zeros to `capacity`.
    fn filled_up(&self, kept: Option<Kept>, len: usize, capacity: usize) -> Kept {
        match kept.filter(|_| len > 0) {
            Some(kept) if len < capacity => kept.first(len).then(self.zeros(capacity - len)),
            // A copy, so that what is behind it is given back.
            Some(kept) => kept.first(len).copied(),
            None => self.zeros(capacity),
        }
    }

    /// `[rows, key_heads·dim]` as `[key_heads, rows, dim]`.
    fn by_head(&self, packed: Tensor<2>) -> Tensor<3> {
        let [count, _] = packed.dims();
        packed.reshape([count, self.heads.key_value, self.heads.dim]).swap_dims(0, 1)
    }
}

impl Cache for GrowingCache {
    type Rows = Tensor<2>;

    fn grow(&mut self, len: usize, count: usize) {
        let (old, needed) = (self.kept.capacity, (len + count).next_multiple_of(PAGE_TOKENS));
        if needed > old {
            let zeros = self.clone();
            self.replace(needed, |kept| zeros.filled_up(kept, old, needed));
        } else if Arc::get_mut(&mut self.kept).is_none() && old > 0 {
            // The tensors themselves are shared on: each is copied when it is first written to.
            let zeros = self.clone();
            self.replace(old, |kept| kept.unwrap_or_else(|| zeros.zeros(old)));
        }
    }

    fn write(&mut self, block: usize, len: usize, kv: &Tensor<2>, range: Range<usize>) {
        let width = self.heads.key_width();
        let new = rows(kv, range);
        let [new_keys, new_values] = [0..width, width..2 * width].map(|side| self.by_head(columns(&new, side)));
        let kept = Arc::get_mut(&mut self.kept).expect("room of its own");
        // Taken out, so that nobody else holds the tensors and they are written in place.
        let KeysValues { keys, values } = kept.blocks[block].take().expect("room of its own");
        kept.blocks[block] = Some(KeysValues { keys: keys.put(len, new_keys), values: values.put(len, new_values) });
    }

    fn truncate(&mut self, len: usize) {
        let capacity = len.next_multiple_of(PAGE_TOKENS);
        if capacity == 0 {
            *self = Self::new(self.kept.blocks.len(), self.heads, self.dtype, &self.device, &self.meter);
        } else if capacity < self.kept.capacity {
            let zeros = self.clone();
            self.replace(capacity, |kept| zeros.filled_up(kept, len, capacity));
        }
    }

    fn shortest(&self) -> usize {
        0
    }

    fn abandon(&mut self, len: usize) {
        let (capacity, zeros) = (self.kept.capacity, self.clone());
        if len < capacity {
            self.replace(capacity, |kept| zeros.filled_up(kept, len, capacity));
        }
    }
}
