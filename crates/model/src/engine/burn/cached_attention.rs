//! Attention of new rows over caches in burn's operations, one sequence after the other: caches are read where they lie.

use burn::tensor::activation::softmax;

use super::attention::HIDDEN;
use super::cache::GrowingCache;
use super::tensor::{RawDevice, Tensor, from_vec, rows, stack};
use crate::engine::shapes::{Grown, Heads};

/// The queries of a step, ready for every block.
#[derive(Debug)]
pub(crate) struct CachedAttention {
    heads: Heads,
    sequences: Vec<Sequence>,
}

#[derive(Debug)]
struct Sequence {
    grown: Grown,
    /// Positions that any of the queries sees.
    seen: usize,
    /// 0 where a query sees a position, else [`HIDDEN`]; `[1, 1, queries, seen]`. Absent if every query sees all.
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
        let seen = grown.visible.iter().copied().max().unwrap_or_default();
        let mask = grown.visible.iter().any(|&visible| visible < seen).then(|| {
            let row = |&visible: &usize| (0..seen).map(move |at| if at < visible { 0.0 } else { HIDDEN });
            let mask = grown.visible.iter().flat_map(row).collect();
            from_vec(mask, [1, 1, grown.visible.len(), seen], device)
        });
        Self { grown, seen, mask }
    }

    /// `[queries, query_heads·dim]`
    fn attend(&self, heads: Heads, block: usize, q: &Tensor<2>, cache: &GrowingCache) -> Tensor<2> {
        let (count, group) = (self.grown.queries.len(), heads.group());
        let [keys, values] = cache.seen(block, self.seen);
        // The query heads of a group are rows of one product with the keys that they share.
        let q = rows(q, self.grown.queries.clone()) * heads.scale();
        let q = q.reshape([count, heads.key_value, group, heads.dim]).permute([1, 2, 0, 3]);
        let scores = q.reshape([heads.key_value, group * count, heads.dim]).matmul(keys.swap_dims(1, 2));
        let mut scores = scores.reshape([heads.key_value, group, count, self.seen]);
        if let Some(mask) = &self.mask {
            scores = scores + mask.clone();
        }
        let p = softmax(scores, 3).reshape([heads.key_value, group * count, self.seen]);
        let out = p.matmul(values).reshape([heads.key_value, group, count, heads.dim]);
        out.permute([2, 0, 1, 3]).reshape([count, heads.query_width()])
    }
}
