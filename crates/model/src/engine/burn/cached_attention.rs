//! Attention of new rows over caches in burn's operations, one sequence after the other: caches are read where they lie.

use super::cache::GrowingCache;
use super::scores::{self, Scoring};
use super::tensor::{RawDevice, Tensor, rows, stack};
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
    /// See [`positions_read`].
    read: usize,
    /// For scores `[key_heads, group, queries, read]`. There is no mask if every query sees all.
    scoring: Scoring<4>,
}

/// Queries of all sequences, `[queries, query_heads·dim]`, and the heads' sinks, `[1, query_heads]`.
type Given<'a> = (&'a Tensor<2>, Option<&'a Tensor<2>>);

impl CachedAttention {
    pub(super) fn new(heads: Heads, sequences: &[Grown], device: &RawDevice) -> Self {
        let longest = sequences.iter().map(positions_read).max().unwrap_or_default();
        let biases = scores::biases(heads, [heads.key_value, heads.group(), 1, longest], device);
        let ready = |grown: &Grown| Sequence::new(grown.clone(), heads.soft_cap, biases.as_ref(), device);
        Self { heads, sequences: sequences.iter().map(ready).collect() }
    }

    /// See [`crate::engine::Engine::attend_cached`].
    pub(super) fn forward(&self, block: usize, given: Given<'_>, caches: &[&mut GrowingCache]) -> Tensor<2> {
        let with_queries = self.sequences.iter().zip(caches).filter(|(sequence, _)| !sequence.grown.queries.is_empty());
        stack(with_queries.map(|(sequence, cache)| sequence.attend(self.heads, block, given, cache)).collect())
    }
}

/// Positions that are read: up to the last that any of the queries sees, and the rest of its page. What is there is finite, and whole tensors
/// are read where they lie, on every device.
fn positions_read(grown: &Grown) -> usize {
    grown.visible.iter().map(|visible| visible.end).max().unwrap_or_default().next_multiple_of(PAGE_TOKENS)
}

impl Sequence {
    /// `biases` are those of as many positions as any sequence reads.
    fn new(grown: Grown, soft_cap: Option<f32>, biases: Option<&Tensor<4>>, device: &RawDevice) -> Self {
        let (read, count) = (positions_read(&grown), grown.visible.len());
        let biases = biases.filter(|_| read > 0).map(|all| all.clone().narrow(3, 0, read));
        let hides = grown.visible.iter().any(|visible| visible.len() < read);
        let mask = hides.then(|| scores::mask(grown.visible.iter().cloned(), [1, 1, count, read], device));
        Self { grown, read, scoring: Scoring { soft_cap, biases, mask } }
    }

    /// `[queries, query_heads·dim]`
    fn attend(&self, heads: Heads, block: usize, (q, sinks): Given<'_>, cache: &GrowingCache) -> Tensor<2> {
        let (count, group) = (self.grown.queries.len(), heads.group());
        let [keys, values] = cache.first(block, self.read);
        // The query heads of a group are rows of one product with the keys that they share.
        let q = rows(q, self.grown.queries.clone()) * heads.scale;
        let q = q.reshape([count, heads.key_value, group, heads.dim]).permute([1, 2, 0, 3]);
        let products = q.reshape([heads.key_value, group * count, heads.dim]).matmul(keys.swap_dims(1, 2));
        let products = products.reshape([heads.key_value, group, count, self.read]);
        let sinks = sinks.map(|sinks| sinks.clone().reshape([heads.key_value, group, 1, 1]));
        let p = self.scoring.probabilities(products, sinks).p;
        let p = p.reshape([heads.key_value, group * count, self.read]);
        let out = p.matmul(values).reshape([heads.key_value, group, count, heads.dim]);
        out.permute([2, 0, 1, 3]).reshape([count, heads.query_width()])
    }
}
