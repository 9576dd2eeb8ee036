//! Attention of a pass: which tiles of queries meet which keys, and the other way round for gradients.

use std::sync::OnceLock;

use cubecl::prelude::Runtime;
use petals_kernels::attention::{self as kernel, KeyTile, QueryTile};
use petals_kernels::{self as kernels, Buffer};

use super::rows::GpuRows;
use crate::engine::shapes::{Geometry, Heads, Segment};

/// Virtual queries that see keys of a prefix and are summed in one part.
const OF_PART: usize = 1024;

/// A geometry on a GPU.
#[derive(Debug)]
pub(crate) struct Attention {
    heads: Heads,
    geometry: Geometry,
    biases: Biases,
    /// From the first position that each row sees to behind the last.
    visible: Buffer,
    forward: Tiles,
    /// Made for the first backward.
    backward: OnceLock<Backward>,
}

/// ALiBi's slopes on a GPU.
#[derive(Debug)]
pub(super) struct Biases(Option<Buffer>);

/// Tiles of queries.
#[derive(Debug)]
pub(super) struct Tiles {
    pub(super) tiles: Buffer,
    pub(super) count: usize,
    pub(super) most: usize,
}

#[derive(Debug)]
struct Backward {
    queries: Tiles,
    keys: Buffer,
    keys_count: usize,
    /// Tiles of keys in parts, their number, and the number of parts.
    parts: Option<(Buffer, usize, usize)>,
    prefix: usize,
}

/// Queries, keys beside values, and sinks.
type Given<'a> = (&'a GpuRows, &'a GpuRows, Option<&'a GpuRows>);

impl Biases {
    pub(super) fn new<R: Runtime>(gpu: &kernels::Gpu<R>, heads: Heads) -> Self {
        Self(heads.alibi.map(|alibi| gpu.upload(&alibi.rounded_slopes(heads.query))))
    }

    /// What kernels know of the heads.
    pub(super) fn heads<'a>(&'a self, heads: Heads, sinks: Option<&'a GpuRows>) -> kernel::Heads<'a> {
        let slopes = self.0.as_ref().zip(heads.alibi);
        kernel::Heads {
            query: heads.query,
            key: heads.key_value,
            dim: heads.dim,
            scale: heads.scale,
            cap: heads.soft_cap,
            slopes: slopes.map(|(of_heads, alibi)| kernel::Slopes {
                of_heads,
                factor: alibi.factor,
                rounded: alibi.rounded,
            }),
            sinks: sinks.map(|sinks| &sinks.values),
        }
    }
}

impl Attention {
    pub(super) fn new<R: Runtime>(gpu: &kernels::Gpu<R>, heads: Heads, geometry: Geometry) -> Self {
        let visible: Vec<u32> = geometry.visible.iter().flat_map(|seen| [seen.start, seen.end]).collect();
        let tiles = query_tiles(heads, &geometry, false);
        let [visible, forward] = gpu.upload_runs([&visible, &QueryTile::words(&tiles.0)]);
        let forward = Tiles { tiles: forward, count: tiles.0.len(), most: tiles.1 };
        Self { heads, geometry, biases: Biases::new(gpu, heads), visible, forward, backward: OnceLock::new() }
    }

    fn queries<'a>(&'a self, Tiles { tiles, count, most }: &'a Tiles) -> kernel::Queries<'a> {
        let rows = self.geometry.visible.len();
        kernel::Queries { tiles, count: *count, most: *most, visible: &self.visible, rows }
    }

    pub(super) fn forward<R: Runtime>(&self, gpu: &kernels::Gpu<R>, (q, kv, sinks): Given<'_>, output: &GpuRows) {
        let heads = self.biases.heads(self.heads, sinks);
        kernel::forward(gpu, heads, &self.queries(&self.forward), (&q.values, &kv.values), &output.values, None);
    }

    pub(super) fn backward<R: Runtime>(
        &self,
        gpu: &kernels::Gpu<R>,
        (q, kv, sinks): Given<'_>,
        d_output: &GpuRows,
        (dq, dkv): (&GpuRows, &GpuRows),
    ) {
        let backward = self.backward.get_or_init(|| Backward::new(gpu, self.heads, &self.geometry));
        let keys = kernel::Keys {
            tiles: &backward.keys,
            count: backward.keys_count,
            parts: backward.parts.as_ref().map(|(tiles, count, parts)| kernel::Parts {
                tiles,
                count: *count,
                rows: backward.prefix,
                parts: *parts,
            }),
        };
        let heads = self.biases.heads(self.heads, sinks);
        let queries = (&self.queries(&self.forward), &self.queries(&backward.queries), &keys);
        let given = kernel::Given { q: &q.values, kv: &kv.values, d_output: &d_output.values };
        kernel::backward(gpu, heads, queries, given, (&dq.values, &dkv.values));
    }
}

/// The tiles of queries of all segments, and how many virtual queries the largest has at most.
fn query_tiles(heads: Heads, geometry: &Geometry, back: bool) -> (Vec<QueryTile>, usize) {
    let longest = geometry.segments.iter().map(|segment| segment.queries.len()).max().unwrap_or_default();
    let most = kernel::queries_of_tile(heads.dim, (longest * heads.group()).max(1), back);
    let mut tiles = Vec::new();
    for Segment { queries, keys, prefix } in &geometry.segments {
        tiles_of(&mut tiles, heads, most, queries.clone(), |rows| {
            let seen = &geometry.visible[rows];
            let from = seen.iter().map(|seen| seen.start).min().unwrap_or_default();
            let to = seen.iter().map(|seen| seen.end).max().unwrap_or_default();
            [*prefix as u32, keys.start as u32, from, to]
        });
    }
    (tiles, most)
}

/// Adds the tiles of one sequence, whose queries are rows `rows`. `seen` tells of some of them what tiles have of their keys.
pub(super) fn tiles_of(
    tiles: &mut Vec<QueryTile>,
    heads: Heads,
    most: usize,
    rows: std::ops::Range<usize>,
    seen: impl Fn(std::ops::Range<usize>) -> [u32; 4],
) {
    let all = rows.len() * heads.group();
    for first in (0..all).step_by(most) {
        let count = most.min(all - first);
        let of_tile = rows.start + first / heads.group()..rows.start + (first + count).div_ceil(heads.group());
        let [prefix, keys, from, to] = seen(of_tile);
        let (row, first, count) = (rows.start as u32, first as u32, count as u32);
        tiles.push(QueryTile { row, first, count, prefix, keys, from, to });
    }
}

impl Backward {
    fn new<R: Runtime>(gpu: &kernels::Gpu<R>, heads: Heads, geometry: &Geometry) -> Self {
        let (queries, most) = query_tiles(heads, geometry, true);
        let of_tile = kernel::keys_of_tile(heads.dim);
        let (mut tiles, mut in_parts) = (Vec::new(), Vec::new());
        let prefix = geometry.segments.iter().map(|segment| segment.prefix).max().unwrap_or_default();
        let rows_of_part = (OF_PART / heads.group()).max(1);
        let parts = geometry.visible.len().div_ceil(rows_of_part);
        let in_range = |rows: std::ops::Range<usize>, positions: std::ops::Range<u32>| {
            let sees = |row: &usize| {
                let seen = &geometry.visible[*row];
                seen.start < positions.end && seen.end > positions.start
            };
            let first = rows.clone().find(sees).unwrap_or(rows.end);
            let last = rows.rev().find(sees).map_or(first, |row| row + 1);
            first as u32..last as u32
        };
        for first in (0..prefix).step_by(of_tile) {
            let count = of_tile.min(prefix - first) as u32;
            let tile = |rows: std::ops::Range<usize>, out: usize| {
                let seen = in_range(rows, first as u32..first as u32 + count);
                let (row, position, out) = (first as u32, first as u32, out as u32);
                KeyTile { row, count, position, from: seen.start, to: seen.end, out }
            };
            if parts == 1 {
                tiles.push(tile(0..geometry.visible.len(), first));
                continue;
            }
            for part in 0..parts {
                let rows = part * rows_of_part..geometry.visible.len().min((part + 1) * rows_of_part);
                in_parts.push(tile(rows, part * prefix + first));
            }
        }
        for segment in geometry.segments.iter().filter(|segment| segment.prefix > 0 || segment.keys.start >= prefix) {
            for first in segment.keys.clone().step_by(of_tile) {
                let count = of_tile.min(segment.keys.end - first) as u32;
                let position = (segment.prefix + first - segment.keys.start) as u32;
                let seen = in_range(segment.queries.clone(), position..position + count);
                let row = first as u32;
                tiles.push(KeyTile { row, count, position, from: seen.start, to: seen.end, out: row });
            }
        }
        let (query_words, key_words) = (QueryTile::words(&queries), KeyTile::words(&tiles));
        let [of_queries, keys, of_parts] = gpu.upload_runs([&query_words, &key_words, &KeyTile::words(&in_parts)]);
        Self {
            queries: Tiles { tiles: of_queries, count: queries.len(), most },
            keys,
            keys_count: tiles.len(),
            parts: (!in_parts.is_empty()).then_some((of_parts, in_parts.len(), parts)),
            prefix,
        }
    }
}
