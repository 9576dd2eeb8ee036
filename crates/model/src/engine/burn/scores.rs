//! From products of queries and keys to probabilities, in burn's operations. The last axis of scores are keys, the one before it queries; how
//! many axes there are besides, `D` in all, is up to whoever has them.

use std::ops::Range;

use burn::tensor::activation::softmax;

use super::tensor::{RawDevice, Tensor, from_vec};
use crate::engine::shapes::Heads;

/// Low enough to vanish in a softmax, and finite so that a row of them is no NaN.
const HIDDEN: f32 = -1e30;

/// What happens to scores before their softmax.
#[derive(Debug)]
pub(super) struct Scoring<const D: usize> {
    pub(super) soft_cap: Option<f32>,
    /// See [`biases`].
    pub(super) biases: Option<Tensor<D>>,
    /// See [`mask`].
    pub(super) mask: Option<Tensor<D>>,
}

/// What is made of scores, in their shape.
pub(super) struct Probabilities<const D: usize> {
    pub(super) p: Tensor<D>,
    /// Scores over the soft cap, behind the tanh, if there is one.
    pub(super) capped: Option<Tensor<D>>,
}

impl<const D: usize> Scoring<D> {
    /// The softmax over what each query sees, of scaled products. `sinks` are as many axes, of which that of the keys is 1 long.
    pub(super) fn probabilities(&self, products: Tensor<D>, sinks: Option<Tensor<D>>) -> Probabilities<D> {
        let (mut scores, capped) = match self.soft_cap {
            Some(cap) => {
                let capped = (products / cap).tanh();
                (capped.clone() * cap, Some(capped))
            }
            None => (products, None),
        };
        for added in [&self.biases, &self.mask].into_iter().flatten() {
            scores = scores + added.clone();
        }
        let p = match sinks {
            Some(sinks) => softmax_with(scores, sinks),
            None => softmax(scores, D - 1),
        };
        Probabilities { p, capped }
    }
}

/// A softmax with one more score for each row, whose probability is dropped.
fn softmax_with<const D: usize>(scores: Tensor<D>, sinks: Tensor<D>) -> Tensor<D> {
    let mut shape = scores.shape();
    let seen = shape[D - 1];
    shape[D - 1] = 1;
    let sinks: Tensor<D> = sinks.expand(shape);
    softmax(Tensor::cat(vec![scores, sinks], D - 1), D - 1).narrow(D - 1, 0, seen)
}

/// How much of a score's gradient the soft cap lets through, from [`Probabilities::capped`].
pub(super) fn cap_slope<const D: usize>(capped: Tensor<D>) -> Tensor<D> {
    capped.square().neg() + 1.0
}

/// ALiBi's biases of each query head's keys, which are counted from the first, in a shape whose other axes are those of query heads or 1 long.
pub(super) fn biases<const D: usize>(heads: Heads, shape: [usize; D], device: &RawDevice) -> Option<Tensor<D>> {
    let seen = shape[D - 1];
    heads.alibi.filter(|_| seen > 0).map(|_| from_vec(heads.biases(seen), shape, device))
}

/// 0 where a query sees a key, else [`HIDDEN`], in a shape whose other axes are those of queries or 1 long. `visible` has what each query sees.
pub(super) fn mask<const D: usize>(
    visible: impl IntoIterator<Item = Range<usize>>,
    shape: [usize; D],
    device: &RawDevice,
) -> Tensor<D> {
    let mut values = Vec::with_capacity(shape.iter().product());
    for visible in visible {
        values.extend((0..shape[D - 1]).map(|key| if visible.contains(&key) { 0.0 } else { HIDDEN }));
    }
    from_vec(values, shape, device)
}
