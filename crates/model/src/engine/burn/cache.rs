//! Keys and values on a device, written in place.
//!
//! Each block has its keys and its values as `[key_heads, capacity, dim]`, so that what is kept is read by products as it lies. They grow by
//! [`PAGE_TOKENS`] positions at a time: a step writes its own rows and nothing else, but for one copy in so many. What two sequences share
//! is copied as a whole when one of them writes.

use std::ops::Range;
use std::sync::Arc;

use super::tensor::{RawDevice, Tensor, columns, rows};
use crate::device::KvDtype;
use crate::engine::meter::Metered;
use crate::engine::shapes::{Heads, PAGE_TOKENS};
use crate::engine::{Cache, KvMeter};

/// The keys and values of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct GrowingCache {
    kept: Arc<Kept>,
    heads: Heads,
    device: RawDevice,
    meter: KvMeter,
}

#[derive(Debug)]
struct Kept {
    /// `None` if there is no capacity.
    blocks: Vec<Option<KeysValues>>,
    capacity: usize,
    _metered: Metered,
}

/// Of one block, `[key_heads, capacity, dim]` each. Slots that were never written are zero.
#[derive(Debug, Clone)]
struct KeysValues {
    keys: Tensor<3>,
    values: Tensor<3>,
}

impl GrowingCache {
    pub(super) fn new(blocks: usize, heads: Heads, device: &RawDevice, meter: &KvMeter) -> Self {
        let kept = Kept { blocks: vec![None; blocks], capacity: 0, _metered: meter.count(0) };
        Self { kept: Arc::new(kept), heads, device: device.clone(), meter: meter.clone() }
    }

    /// Keys and values of a block for positions `0..len`, `[key_heads, len, dim]`, at most those that there is room for.
    ///
    /// # Panics
    /// If nothing was ever written.
    pub(super) fn first(&self, block: usize, len: usize) -> [Tensor<3>; 2] {
        let KeysValues { keys, values } = self.kept.blocks[block].clone().expect("something was written");
        [keys, values].map(|all| if len == self.kept.capacity { all } else { first(all, len) })
    }

    /// Replaces what is kept by something else of a new capacity, which is not 0.
    fn replace(&mut self, capacity: usize, change: impl Fn(Option<Tensor<3>>) -> Tensor<3>) {
        let changed = |kept: &Option<KeysValues>| {
            let (keys, values) = kept.clone().map(|kept| (kept.keys, kept.values)).unzip();
            Some(KeysValues { keys: change(keys), values: change(values) })
        };
        let blocks = self.kept.blocks.iter().map(changed).collect::<Vec<_>>();
        let pages = (capacity / PAGE_TOKENS) as u64;
        let metered = self.meter.count(blocks.len() as u64 * pages * self.heads.page_bytes(KvDtype::F32));
        self.kept = Arc::new(Kept { blocks, capacity, _metered: metered });
    }

    fn zeros(&self, positions: usize) -> Tensor<3> {
        Tensor::zeros([self.heads.key_value, positions, self.heads.dim], &self.device)
    }

    /// The first `len` positions, filled up with zeros to `capacity`.
    fn filled_up(&self, kept: Option<Tensor<3>>, len: usize, capacity: usize) -> Tensor<3> {
        match kept.filter(|_| len > 0) {
            Some(kept) if len < capacity => Tensor::cat(vec![first(kept, len), self.zeros(capacity - len)], 1),
            // A copy, so that what is behind it is given back.
            Some(kept) => first(kept, len) + 0.0,
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
        let (width, heads, dim) = (self.heads.key_width(), self.heads.key_value, self.heads.dim);
        let positions = len..len + range.len();
        let new = rows(kv, range);
        let [new_keys, new_values] = [0..width, width..2 * width].map(|side| self.by_head(columns(&new, side)));
        let kept = Arc::get_mut(&mut self.kept).expect("room of its own");
        // Taken out, so that nobody else holds the tensors and they are written in place.
        let KeysValues { keys, values } = kept.blocks[block].take().expect("room of its own");
        let put = |all: Tensor<3>, new| all.slice_assign([0..heads, positions.clone(), 0..dim], new);
        kept.blocks[block] = Some(KeysValues { keys: put(keys, new_keys), values: put(values, new_values) });
    }

    fn truncate(&mut self, len: usize) {
        let capacity = len.next_multiple_of(PAGE_TOKENS);
        if capacity == 0 {
            *self = Self::new(self.kept.blocks.len(), self.heads, &self.device, &self.meter);
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

/// The first `len` positions.
fn first(kept: Tensor<3>, len: usize) -> Tensor<3> {
    let [heads, _, dim] = kept.dims();
    kept.slice([0..heads, 0..len, 0..dim])
}
