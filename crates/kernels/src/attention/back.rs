//! The backward of attention over rows.
//!
//! With `P` the probabilities, `dP = dO·Vᵀ` and `D = rowsum(dO ∘ O)`: `dS = P ∘ (dP - D)`, times `1 - (s/cap)²` where scores are bent, `dQ = scale · dS·K`,
//! `dK = scale · dSᵀ·Q`, `dV = Pᵀ·dO`. A sink is in the sums of scores and has no gradient.

use cubecl::prelude::*;

use super::{Heads, Queries, Shape, forward};
use crate::gpu::{Buffer, Gpu};
use crate::rows::dot_rows;

mod keys;
mod queries;
mod sum;

/// Keys that are computed together, and the rows of queries that see any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyTile {
    /// The first key's row.
    pub row: u32,
    /// How many.
    pub count: u32,
    /// The first key's position for the queries that see it.
    pub position: u32,
    /// The first row of queries.
    pub from: u32,
    /// Behind the last.
    pub to: u32,
    /// Row where gradients are written.
    pub out: u32,
}

impl KeyTile {
    /// Values of a tile on the device.
    const WORDS: usize = 6;

    /// Those of several.
    pub fn words(tiles: &[Self]) -> Vec<u32> {
        tiles.iter().flat_map(|tile| [tile.row, tile.count, tile.position, tile.from, tile.to, tile.out]).collect()
    }
}

/// Keys of a backward on the device.
#[derive(Debug)]
pub struct Keys<'a> {
    /// [`KeyTile::words`], whose gradients are written where they belong.
    pub tiles: &'a Buffer,
    /// How many.
    pub count: usize,
    /// Those of keys that so many queries see that they are computed in parts, written to rows `part·rows` and following of a matrix of their own.
    pub parts: Option<Parts<'a>>,
}

/// See [`Keys::parts`].
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// [`KeyTile::words`].
    pub tiles: &'a Buffer,
    /// How many.
    pub count: usize,
    /// Rows of keys that are computed in parts, the first ones of all.
    pub rows: usize,
    /// How many parts.
    pub parts: usize,
}

/// What a backward gets.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// `[rows, query heads·dim]`
    pub q: &'a Buffer,
    /// `[rows, 2·key heads·dim]`
    pub kv: &'a Buffer,
    /// The gradient of the output.
    pub d_output: &'a Buffer,
}

/// Writes the gradients of queries to `dq` and those of keys and values to `dkv`. `forwards` has the tiles of a forward, `queries` those of a backward.
pub fn backward<R: Runtime>(
    gpu: &Gpu<R>,
    heads: Heads<'_>,
    (forwards, queries, keys): (&Queries<'_>, &Queries<'_>, &Keys<'_>),
    given: Given<'_>,
    (dq, dkv): (&Buffer, &Buffer),
) {
    let of_heads = queries.rows * heads.query;
    let (logarithms, along) = (gpu.empty(of_heads), gpu.empty(of_heads));
    // The output once more, where the gradients of queries will be.
    forward(gpu, heads, forwards, (given.q, given.kv), dq, Some(&logarithms));
    dot_rows(gpu, (dq, given.d_output), &along, heads.dim);
    let shape = Shape::new(heads, queries.most, None, true);
    queries::launch_queries(gpu, heads, shape, queries, given, (&logarithms, &along), dq);
    let all = Shape { queries: Shape::new(heads, usize::MAX / 2 + 1, None, true).queries, ..shape };
    keys::launch_keys(gpu, heads, all, (keys.tiles, keys.count), queries.visible, given, (&logarithms, &along), dkv);
    if let Some(parts) = keys.parts {
        let width = 2 * heads.key * heads.dim;
        let sums = gpu.empty(parts.parts * parts.rows * width);
        let tiles = (parts.tiles, parts.count);
        keys::launch_keys(gpu, heads, all, tiles, queries.visible, given, (&logarithms, &along), &sums);
        sum::sum_parts(gpu, &sums, dkv, [parts.parts, parts.rows * width]);
    }
}
