//! Angles of rotary position embedding (Su et al. 2021), which all engines take from here: sines of large arguments are not exact on every
//! device.

use std::sync::{Mutex, PoisonError};

use crate::config::ModelConfig;

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

/// Cosines and sines, `[rows, head_dim / 2]` each.
#[derive(Debug)]
pub(crate) struct CosSin {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
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

    /// Pairs of a head.
    pub(crate) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Angles for rows at these positions. The products are taken in f32, as the models were trained.
    pub(crate) fn cos_sin(&self, positions: &[u32]) -> CosSin {
        let pairs = self.pairs();
        let count = positions.iter().max().map_or(0, |&last| last as usize + 1);
        // The table is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.extend_to(count, &self.frequencies);
        let rows = |table: &[f32]| -> Vec<f32> {
            let row = |&position: &u32| &table[position as usize * pairs..][..pairs];
            positions.iter().flat_map(row).copied().collect()
        };
        CosSin { cos: rows(&table.cos), sin: rows(&table.sin) }
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
