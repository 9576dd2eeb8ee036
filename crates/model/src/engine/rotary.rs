//! Angles of rotary position embedding (Su et al. 2021), which all engines take from here: sines of large arguments are not exact on every
//! device.

use std::sync::{Mutex, PoisonError};

use crate::config::RotaryDesign;

/// A rotary embedding: cosines and sines of the positions that were needed so far.
#[derive(Debug)]
pub(crate) struct Rotary {
    usual: Turns,
    /// Those of texts longer than that of pre-training, if they are others.
    long: Option<Turns>,
    pairing: Pairing,
}

/// Radians per position of each pair of a head, and what came of them.
#[derive(Debug)]
struct Turns {
    frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by.
    factor: f64,
    table: Mutex<Table>,
}

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: u32,
    /// Whether its text is, or may become, longer than those of pre-training.
    pub(crate) long: bool,
}

/// Which values of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pairing {
    /// Width of a head, of which the first `2·pairs` values are rotated.
    pub(crate) head_dim: usize,
    /// Whether neighbours are pairs, and not the halves of what is rotated.
    pub(crate) interleaved: bool,
}

/// `[positions, pairs]` each, from position 0 on.
#[derive(Debug, Default)]
struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Cosines and sines, `[rows, pairs]` each.
#[derive(Debug)]
pub(crate) struct CosSin {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    pub(crate) pairing: Pairing,
}

/// Which way to turn: a rotation's inverse is its transpose, hence its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Forward,
    Back,
}

impl Rotary {
    /// For heads of `head_dim`.
    pub(crate) fn new(design: &RotaryDesign, head_dim: usize) -> Self {
        let turns = |long| Turns {
            frequencies: design.frequencies(long).into_iter().map(|frequency| frequency as f32).collect(),
            factor: design.scaling.attention_factor(),
            table: Mutex::default(),
        };
        let pairing = Pairing { head_dim, interleaved: design.interleaved };
        Self { usual: turns(false), long: design.long_from().map(|_| turns(true)), pairing }
    }

    /// Pairs of a head.
    pub(crate) fn pairs(&self) -> usize {
        self.usual.frequencies.len()
    }

    /// Angles for rows at these places.
    pub(crate) fn cos_sin(&self, places: &[Place]) -> CosSin {
        let pairs = self.pairs();
        let mut angles = CosSin { cos: Vec::new(), sin: Vec::new(), pairing: self.pairing };
        angles.cos.reserve(places.len() * pairs);
        angles.sin.reserve(places.len() * pairs);
        // Rows of the same kind lie together nearly always.
        for places in places.chunk_by(|a, b| a.long == b.long) {
            let is_long = places.iter().any(|place| place.long);
            let turns = self.long.as_ref().filter(|_| is_long).unwrap_or(&self.usual);
            turns.add_to(&mut angles, places);
        }
        angles
    }
}

impl Turns {
    /// Appends the angles of rows. The products are taken in f32, as the models were trained.
    fn add_to(&self, angles: &mut CosSin, places: &[Place]) {
        let pairs = self.frequencies.len();
        let count = places.iter().map(|place| place.position as usize + 1).max().unwrap_or_default();
        // The table is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.extend_to(count, &self.frequencies, self.factor);
        for place in places {
            let row = place.position as usize * pairs..(place.position as usize + 1) * pairs;
            angles.cos.extend_from_slice(&table.cos[row.clone()]);
            angles.sin.extend_from_slice(&table.sin[row]);
        }
    }
}

impl Table {
    fn extend_to(&mut self, positions: usize, frequencies: &[f32], factor: f64) {
        for position in self.cos.len() / frequencies.len().max(1)..positions {
            for frequency in frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push((cos * factor) as f32);
                self.sin.push((sin * factor) as f32);
            }
        }
    }
}
