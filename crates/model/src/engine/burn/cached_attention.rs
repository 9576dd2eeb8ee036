//! Attention of new rows over caches in burn's operations, one sequence after the other: caches are read where they lie.

use burn::tensor::activation::softmax;

use super::attention::HIDDEN;
use super::cache::GrowingCache;
use super::tensor::{RawDevice, Tensor, from_vec, rows, stack};
use crate::engine::shapes::{Grown, Heads, PAGE_TOKENS};

/// The queries of a step, ready for every block.
#[derive(Debug)]
pub(crate) struct CachedAttention {
    heads: Heads,
    sequences: Vec<Sequence>,
}

#[derive(Debug)]
struct Sequence {
    grown: Grown,
    /// Positions that are read: those that any of the queries sees, and the rest of the page. What is there is finite, and
    /// whole tensors are read where they lie, on every device.
    read: usize,
    /// 0 where a query sees a position, else [`HIDDEN`]; `[1, 1, queries, read]`. Absent if every query sees all.
    mask: Option<Tensor<4>>,
}

impl CachedAttention {
    pub(super) fn new(heads: Heads, sequences: &[Grown], device: &RawDevice) -> Self {
        let sequences = sequences.iter().map(|grown| Sequence::new(grown.clone(), device)).collect();
        Self { heads, sequences }
    }

    /// See [`crate::engine::Engine::attend_cached`].
    pub(super) fn forward(&self, block: usize, q: &Tensor<2>, caches: &[&mut GrowingCache]) -> Tensor<2> {
        let with_queries = self.sequences.iter().zip(caches).filter(|(sequence, _)| !sequence.grown.queries.is_empty());
        stack(with_queries.map(|(sequence, cache)| sequence.attend(self.heads, block, q, cache)).collect())
    }
}

impl Sequence {
    fn new(grown: Grown, device: &RawDevice) -> Self {
        let read = grown.visible.iter().copied().max().unwrap_or_default().next_multiple_of(PAGE_TOKENS);
        let mask = grown.visible.iter().any(|&visible| visible < read).then(|| {
            let row = |&visible: &usize| (0..read).map(move |at| if at < visible { 0.0 } else { HIDDEN });
            let mask = grown.visible.iter().flat_map(row).collect();
            from_vec(mask, [1, 1, grown.visible.len(), read], device)
        });
        Self { grown, read, mask }
    }

    /// `[queries, query_heads·dim]`
    fn attend(&self, heads: Heads, block: usize, q: &Tensor<2>, cache: &GrowingCache) -> Tensor<2> {
        let (count, group) = (self.grown.queries.len(), heads.group());
        let [keys, values] = cache.first(block, self.read);
        // The query heads of a group are rows of one product with the keys that they share.
        let q = rows(q, self.grown.queries.clone()) * heads.scale();
        let q = q.reshape([count, heads.key_value, group, heads.dim]).permute([1, 2, 0, 3]);
        let scores = q.reshape([heads.key_value, group * count, heads.dim]).matmul(keys.swap_dims(1, 2));
        let mut scores = scores.reshape([heads.key_value, group, count, self.read]);
        if let Some(mask) = &self.mask {
            scores = scores + mask.clone();
        }
        let p = softmax(scores, 3).reshape([heads.key_value, group * count, self.read]);
        let out = p.matmul(values).reshape([heads.key_value, group, count, heads.dim]);
        out.permute([2, 0, 1, 3]).reshape([count, heads.query_width()])
    }
}
