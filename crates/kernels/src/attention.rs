//! Attention without scores in memory (Dao et al. 2022): tiles of queries meet tiles of keys in shared memory, and a softmax is corrected as larger
//! scores come (Milakov & Gimelshein 2018).
//!
//! The query heads of a key head are computed together, so that keys and values are read once for all of them: a query of a head is a *virtual query*, and those of
//! a sequence are numbered `row·group + head of the group`. Keys and values are rows of a matrix, or in pages of caches.
//!
//! The backward computes probabilities again from the logarithms of the sums that the forward wrote. Gradients of queries, and of keys and values, have kernels
//! of their own, so that nothing is added by several cubes at once and sums are the same every time.

use cubecl::prelude::*;

use crate::cache::{Kept, rounded_bits};
use crate::gpu::Buffer;

mod back;
mod board;
mod combine;
mod forward;
mod source;

pub use back::{Given, KeyTile, Keys, Parts, backward};
pub use forward::{forward, grown};

/// Units of a cube.
const UNITS: usize = 128;
/// Values that are loaded together.
pub(crate) type Four = Vector<f32, Const<4>>;
/// Lower than any score, and finite, so that differences are numbers.
const LOWEST: f32 = -1e30;

/// Heads, and what becomes of their scores: `cap(scale · q·k) + slope · position`.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Query heads.
    pub query: usize,
    /// Key heads.
    pub key: usize,
    /// Values of a head.
    pub dim: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// What scores are bent towards, `cap · tanh(s / cap)`.
    pub cap: Option<f32>,
    /// ALiBi's biases, if scores have them.
    pub slopes: Option<Slopes<'a>>,
    /// A score of each query head that goes to no key.
    pub sinks: Option<&'a Buffer>,
}

/// ALiBi's biases: `factor · slope · position` (Press et al. 2022).
#[derive(Debug, Clone, Copy)]
pub struct Slopes<'a> {
    /// A slope for each query head.
    pub of_heads: &'a Buffer,
    /// What all biases are multiplied by.
    pub factor: f32,
    /// Whether products of slopes and positions are rounded to bf16, as in Falcon.
    pub rounded: bool,
}

/// What is the same in all kernels of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    dim: usize,
    /// Query heads of a key head.
    group: usize,
    key_heads: usize,
    /// Virtual queries of a tile.
    queries: usize,
    /// Keys of a tile.
    keys: usize,
    /// How keys and values are kept in pages; `None` if they are rows.
    kept: Option<Kept>,
    capped: bool,
    sloped: bool,
    rounded: bool,
    sunk: bool,
}

impl Shape {
    /// For tiles of at most so many virtual queries; a backward has twice as much in shared memory.
    fn new(heads: Heads<'_>, most_queries: usize, kept: Option<Kept>, back: bool) -> Self {
        let Heads { query, key, dim, cap, slopes, sinks, .. } = heads;
        let quads = dim.div_ceil(4);
        let part = if back { 2 } else { 1 };
        let fitting = |values: usize, most: usize| floor_power((values / part / quads).clamp(1, most));
        Self {
            dim,
            group: query / key,
            key_heads: key,
            queries: fitting(512, 16).min(most_queries.next_power_of_two()),
            keys: fitting(1024, 64 / part),
            kept,
            capped: cap.is_some(),
            sloped: slopes.is_some(),
            rounded: slopes.is_some_and(|slopes| slopes.rounded),
            sunk: sinks.is_some(),
        }
    }

    /// Runs of four values of a head.
    fn quads(self) -> usize {
        self.dim.div_ceil(4)
    }

    /// Runs of four from a row to the next one in shared memory, so that neighbours are in other banks.
    fn stride(self) -> usize {
        self.quads() + 1
    }

    /// Values of a row of queries.
    fn query_width(self) -> usize {
        self.key_heads * self.group * self.dim
    }
}

/// The largest power of two that is not above `value`.
fn floor_power(value: usize) -> usize {
    (value + 1).next_power_of_two() / 2
}

/// Virtual queries of one sequence that are computed together, and what any of them sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryTile {
    /// The sequence's first row among the queries.
    pub row: u32,
    /// The tile's first virtual query among those of the sequence.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Positions before this one are rows from 0 on; of a cache: where the sequence's pages begin in the table of pages.
    pub prefix: u32,
    /// Row of the key of the first position behind the prefix.
    pub keys: u32,
    /// First position that any of the queries sees.
    pub from: u32,
    /// Position behind the last one that any of them sees.
    pub to: u32,
}

impl QueryTile {
    /// Values of a tile on the device.
    const WORDS: usize = 7;

    /// Those of several.
    pub fn words(tiles: &[Self]) -> Vec<u32> {
        let words = |tile: &Self| [tile.row, tile.first, tile.count, tile.prefix, tile.keys, tile.from, tile.to];
        tiles.iter().flat_map(words).collect()
    }
}

/// How many virtual queries a tile has at most, for heads of `dim` values; of a sequence with fewer, tiles are as small as that.
pub fn queries_of_tile(dim: usize, virtual_queries: usize, back: bool) -> usize {
    let part = if back { 2 } else { 1 };
    floor_power((512 / part / dim.div_ceil(4)).clamp(1, 16)).min(virtual_queries.next_power_of_two())
}

/// How many keys a tile of a backward has.
pub fn keys_of_tile(dim: usize) -> usize {
    floor_power((512 / dim.div_ceil(4)).clamp(1, 32))
}

/// Query tiles and what each active row sees, on the device.
#[derive(Debug)]
pub struct Queries<'a> {
    /// [`QueryTile::words`].
    pub tiles: &'a Buffer,
    /// How many tiles.
    pub count: usize,
    /// Virtual queries of the largest, rounded up to a power of two.
    pub most: usize,
    /// Of each row which positions it sees, from the first to behind the last.
    pub visible: &'a Buffer,
    /// Rows.
    pub rows: usize,
}

/// `tanh`, which is a number for whatever `x` is.
#[cube]
fn tanh(x: f32) -> f32 {
    let e = f32::exp(f32::abs(x) * -2.0);
    let t = (1.0 - e) / (1.0 + e);
    select(x < 0.0, -t, t)
}

/// A score of a query whose head has `slope`, and a key.
#[cube]
fn score_of(product: f32, cap: f32, slope: f32, factor: f32, position: usize, #[comptime] shape: Shape) -> f32 {
    let mut score = product;
    if comptime!(shape.capped) {
        score = cap * tanh(product / cap);
    }
    if comptime!(shape.sloped) {
        let mut bias = slope * f32::cast_from(position);
        if comptime!(shape.rounded) {
            bias = f32::reinterpret(rounded_bits(bias) & 0xffff_0000u32);
        }
        score += bias * factor;
    }
    score
}

/// Four values of a head of a matrix of f32, from `at` on, times `scale`; zeros behind the head's end.
#[cube]
fn four_of(x: &Array<f32>, at: usize, quad: usize, scale: f32, #[comptime] dim: usize) -> Four {
    let mut four = Four::new(0.0);
    #[unroll]
    for i in 0..4usize {
        if comptime!(dim.is_multiple_of(4)) {
            four[i] = x[at + quad * 4 + i] * scale;
        } else if quad * 4 + i < dim {
            four[i] = x[at + quad * 4 + i] * scale;
        }
    }
    four
}

/// The sum of four products, added to `sum`.
#[cube]
fn dot(a: Four, b: Four, sum: f32) -> f32 {
    sum + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
}

/// The product of two rows in shared memory.
#[cube]
fn dot_of(
    a: &SharedMemory<Four>,
    first: usize,
    b: &SharedMemory<Four>,
    second: usize,
    #[comptime] quads: usize,
) -> f32 {
    let mut sum = f32::new(0.0);
    for quad in 0..quads {
        sum = dot(a[first + quad], b[second + quad], sum);
    }
    sum
}
