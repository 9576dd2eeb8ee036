//! From products of queries and keys to probabilities, and the gradients back.

use super::simd::{softmax, softmax_with, sum2, tanh, vectorized};
use crate::engine::shapes::Heads;

/// What becomes of the scores of one query head.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a> {
    scale: f32,
    soft_cap: Option<f32>,
    /// ALiBi's, of all positions that may be seen; empty without.
    biases: &'a [f32],
    /// One more score, which goes to no key.
    sink: Option<f32>,
}

impl<'a> Scores<'a> {
    /// Those of query head `head`. `biases` are those of all heads ([`Heads::biases`]), `sinks` one for each, if there are any.
    pub(super) fn of(heads: Heads, head: usize, biases: &'a [f32], sinks: Option<&[f32]>) -> Self {
        let seen = biases.len() / heads.query;
        Self {
            scale: heads.scale,
            soft_cap: heads.soft_cap,
            biases: &biases[head * seen..(head + 1) * seen],
            sink: sinks.and_then(|sinks| sinks.get(head).copied()),
        }
    }

    /// Replaces the products of one query with keys from position `first` on by probabilities.
    #[inline(always)]
    pub(super) fn probabilities(self, row: &mut [f32], first: usize) {
        if self.soft_cap.is_none() && self.biases.is_empty() {
            return match self.sink {
                None => softmax(row, self.scale),
                Some(sink) => softmax_with(row, self.scale, sink),
            };
        }
        row.iter_mut().for_each(|v| *v *= self.scale);
        if let Some(cap) = self.soft_cap {
            row.iter_mut().for_each(|v| *v = cap * tanh(*v / cap));
        }
        if !self.biases.is_empty() {
            row.iter_mut().zip(&self.biases[first..]).for_each(|(v, bias)| *v += bias);
        }
        softmax_with(row, 1.0, self.sink.unwrap_or(f32::NEG_INFINITY));
    }

    /// What the slope of the soft cap is at each product of a query with keys, if there is a cap.
    pub(super) fn slopes(self, products: &[f32]) -> Vec<f32> {
        let Some(cap) = self.soft_cap else { return Vec::new() };
        let mut slopes = products.to_vec();
        vectorized(
            #[inline(always)]
            || {
                slopes.iter_mut().for_each(|v| {
                    let t = tanh(*v * self.scale / cap);
                    *v = 1.0 - t * t;
                });
            },
        );
        slopes
    }
}

/// Replaces gradients of probabilities `p` by those of the scores, row by row of `columns`; `slopes` as [`Scores::slopes`] has them.
pub(super) fn back(gradients: &mut [f32], p: &[f32], columns: usize, slopes: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (ds, p) in gradients.chunks_exact_mut(columns).zip(p.chunks_exact(columns)) {
                let along = sum2(ds, p, |d, p| d * p);
                ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - along));
            }
            gradients.iter_mut().zip(slopes).for_each(|(d, slope)| *d *= slope);
        },
    );
}
