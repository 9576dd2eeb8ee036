//! Rotary position embedding in burn's operations.

use super::tensor::{RawDevice, Tensor, from_vec, height};
use crate::engine::rotary::Turn;

/// Cosines and sines for the rows of a matrix, `[rows, 1, head_dim / 2]`.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Angles {
    /// `[rows, pairs]` of cosines and of sines.
    pub(super) fn new([cos, sin]: [Vec<f32>; 2], [rows, pairs]: [usize; 2], device: &RawDevice) -> Self {
        let [cos, sin] = [cos, sin].map(|values| from_vec(values, [rows, 1, pairs], device));
        Self { cos, sin }
    }

    pub(super) fn head_dim(&self) -> usize {
        let [_, _, pairs] = self.cos.dims();
        2 * pairs
    }

    /// Rotates all heads of `x` `[rows, heads·head_dim]`.
    pub(super) fn rotate(&self, x: Tensor<2>, heads: usize, turn: Turn) -> Tensor<2> {
        let (rows, pairs) = (height(&x), self.head_dim() / 2);
        let split = x.reshape([rows, heads, 2 * pairs]);
        let half = |range| split.clone().slice([0..rows, 0..heads, range]);
        let (a, b) = (half(0..pairs), half(pairs..2 * pairs));
        let cos = || self.cos.clone();
        let sin = if turn == Turn::Back { self.sin.clone().neg() } else { self.sin.clone() };
        let first = a.clone() * cos() - b.clone() * sin.clone();
        let second = b * cos() + a * sin;
        Tensor::cat(vec![first, second], 2).reshape([rows, heads * 2 * pairs])
    }
}
