//! Rotary position embedding (Su et al. 2021) in the half-split form of Llama checkpoints.

use std::sync::{Mutex, PoisonError};

use crate::config::ModelConfig;
use crate::device::Device;
use crate::kernels;
use crate::tensor::{DeviceFailure, Tensor, columns, from_vec, into_vec};

/// Radians per position of each pair of a head, and cosines and sines of the positions that were needed so far.
#[derive(Debug)]
pub(crate) struct Rotary {
    frequencies: Vec<f32>,
    table: Mutex<Table>,
}

/// `[positions, head_dim / 2]` each, from position 0 on.
#[derive(Debug, Default)]
struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Cosines and sines for the rows of a matrix, `[rows, head_dim / 2]`.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a pass has at most three")]
pub(crate) enum Angles {
    Host { cos: Vec<f32>, sin: Vec<f32> },
    Device { cos: Tensor<3>, sin: Tensor<3> },
}

/// Which way to turn: a rotation's inverse is its transpose, hence its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Forward,
    Back,
}

impl Rotary {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let pairs = config.head_dim / 2;
        let frequency = |i: usize| config.rope_theta.powf(-(i as f64) / pairs as f64);
        let frequencies = (0..pairs).map(|i| config.rope_scaling.apply(frequency(i)) as f32).collect();
        Self { frequencies, table: Mutex::default() }
    }

    /// Angles for rows at these positions. The products are taken in f32, as the models were trained.
    pub(crate) fn angles(&self, positions: &[u32], device: &Device) -> Angles {
        let pairs = self.frequencies.len();
        let count = positions.iter().max().map_or(0, |&last| last as usize + 1);
        // The table is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.extend_to(count, &self.frequencies);
        let rows = |table: &[f32]| -> Vec<f32> {
            let row = |&position: &u32| &table[position as usize * pairs..][..pairs];
            positions.iter().flat_map(row).copied().collect()
        };
        let (cos, sin) = (rows(&table.cos), rows(&table.sin));
        drop(table);
        if device.has_kernels() {
            return Angles::Host { cos, sin };
        }
        let shape = [positions.len(), 1, self.frequencies.len()];
        Angles::Device { cos: from_vec(cos, shape, device.raw()), sin: from_vec(sin, shape, device.raw()) }
    }
}

impl Table {
    fn extend_to(&mut self, positions: usize, frequencies: &[f32]) {
        for position in self.cos.len() / frequencies.len().max(1)..positions {
            for frequency in frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }
}

/// Rotates the first `heads` heads of every row of `x` `[rows, at least heads·head_dim]` and leaves the rest alone:
/// `(a, b) -> (a·cos - b·sin, b·cos + a·sin)` for the halves `a`, `b` of a head.
pub(crate) fn rotate(x: Tensor<2>, heads: usize, angles: &Angles, turn: Turn) -> Result<Tensor<2>, DeviceFailure> {
    let shape @ [rows, width] = x.dims();
    match angles {
        Angles::Host { cos, sin } => {
            let device = x.device();
            let mut values = into_vec(x)?;
            kernels::rotary::rotate(&mut values, width, heads, (cos, sin), turn == Turn::Back);
            Ok(from_vec(values, shape, &device))
        }
        Angles::Device { cos, sin } => {
            let [_, _, pairs] = cos.dims();
            let rotated = heads * 2 * pairs;
            let heads_of_rows = columns(&x, 0..rotated).reshape([rows, heads, 2 * pairs]);
            let half = |range| heads_of_rows.clone().slice([0..rows, 0..heads, range]);
            let (a, b) = (half(0..pairs), half(pairs..2 * pairs));
            let sin = if turn == Turn::Back { sin.clone().neg() } else { sin.clone() };
            let first = a.clone() * cos.clone() - b.clone() * sin.clone();
            let second = b * cos.clone() + a * sin;
            let turned = Tensor::cat(vec![first, second], 2).reshape([rows, rotated]);
            Ok(if rotated == width { turned } else { Tensor::cat(vec![turned, columns(&x, rotated..width)], 1) })
        }
    }
}
