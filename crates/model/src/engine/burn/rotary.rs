//! Rotary position embedding in burn's operations.

use std::ops::Range;

use super::tensor::{RawDevice, Tensor, from_vec, height};
use crate::engine::rotary::{CosSin, Pairing, Turn};

/// Cosines and sines for the rows of a matrix, `[rows, 1, pairs]`.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: Tensor<3>,
    sin: Tensor<3>,
    pairing: Pairing,
}

impl Angles {
    /// `[rows, pairs]` of cosines and of sines.
    pub(super) fn new(angles: CosSin, [rows, pairs]: [usize; 2], device: &RawDevice) -> Self {
        let CosSin { cos, sin, pairing } = angles;
        let [cos, sin] = [cos, sin].map(|values| from_vec(values, [rows, 1, pairs], device));
        Self { cos, sin, pairing }
    }

    pub(super) fn head_dim(&self) -> usize {
        self.pairing.head_dim
    }

    fn pairs(&self) -> usize {
        let [_, _, pairs] = self.cos.dims();
        pairs
    }

    /// Rotates all heads of `x` `[rows, heads·head_dim]`.
    pub(super) fn rotate(&self, x: Tensor<2>, heads: usize, turn: Turn) -> Tensor<2> {
        let (rows, dim, pairs) = (height(&x), self.head_dim(), self.pairs());
        let split = x.reshape([rows, heads, dim]);
        let part = |range: Range<usize>| split.clone().slice([0..rows, 0..heads, range]);
        let mut parts = if self.pairing.interleaved {
            vec![self.turn_neighbours(part(0..2 * pairs), turn)]
        } else {
            Vec::from(self.turn(part(0..pairs), part(pairs..2 * pairs), turn))
        };
        if 2 * pairs < dim {
            parts.push(part(2 * pairs..dim));
        }
        Tensor::cat(parts, 2).reshape([rows, heads * dim])
    }

    /// Rotates pairs of neighbours, `[rows, heads, 2·pairs]`.
    fn turn_neighbours(&self, x: Tensor<3>, turn: Turn) -> Tensor<3> {
        let [rows, heads, turned] = x.dims();
        let pairs = turned / 2;
        let neighbours: Tensor<4> = x.reshape([rows, heads, pairs, 2]);
        let side = |at: usize| -> Tensor<3> {
            let side = neighbours.clone().slice([0..rows, 0..heads, 0..pairs, at..at + 1]);
            side.reshape([rows, heads, pairs])
        };
        let sides: [Tensor<4>; 2] = self.turn(side(0), side(1), turn).map(|side| side.reshape([rows, heads, pairs, 1]));
        Tensor::cat(Vec::from(sides), 3).reshape([rows, heads, turned])
    }

    /// The rotated first and second values of pairs, `[rows, heads, pairs]` each.
    fn turn(&self, a: Tensor<3>, b: Tensor<3>, turn: Turn) -> [Tensor<3>; 2] {
        let cos = || self.cos.clone();
        let sin = if turn == Turn::Back { self.sin.clone().neg() } else { self.sin.clone() };
        let first = a.clone() * cos() - b.clone() * sin.clone();
        [first, b * cos() + a * sin]
    }
}
