//! The forward, of rows and of caches.

use cubecl::prelude::*;

use super::combine::combine;
use super::source::kept_four;
use super::{Four, Heads, LOWEST, Queries, QueryTile, Shape, UNITS, dot_of, four_of, score_of};
use crate::cache::Kv;
use crate::gpu::{Buffer, Gpu};
use crate::launch;

/// Fewest positions that are worth a cube of their own.
const OF_SPLIT: usize = 256;

/// What a kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writes {
    /// Outputs.
    Outputs,
    /// Outputs, and the logarithms of sums of scores.
    Logarithms,
    /// Sums of a part of the positions, with their largest score and the sum of the others' exponentials to it.
    Parts,
}

/// The output `[rows, query heads·dim]` of queries `q`, whose keys and values are rows of `kv`, `[rows, 2·key heads·dim]`. With `logarithms`, `[rows, query heads]`, those of
/// the sums of scores are written too.
pub fn forward<R: Runtime>(
    gpu: &Gpu<R>,
    heads: Heads<'_>,
    queries: &Queries<'_>,
    (q, kv): (&Buffer, &Buffer),
    out: &Buffer,
    logarithms: Option<&Buffer>,
) {
    let shape = Shape::new(heads, queries.most, None, false);
    let writes = if logarithms.is_some() { Writes::Logarithms } else { Writes::Outputs };
    start(gpu, heads, shape, queries, (q, kv, None, None), (out, logarithms), (1, writes));
}

/// The output of queries `q` over pages of a cache. `pages` has the numbers of the pages of each sequence, where its tiles say; `longest` is how many positions any
/// of the sequences has.
pub fn grown<R: Runtime>(
    gpu: &Gpu<R>,
    heads: Heads<'_>,
    queries: &Queries<'_>,
    q: &Buffer,
    (kv, pages): (Kv<'_>, &Buffer),
    out: &Buffer,
    longest: usize,
) {
    let shape = Shape::new(heads, queries.most, Some(kv.kept), false);
    // Long sequences are cut until all of the device has work.
    let cubes = queries.count * heads.key;
    let splits = (4 * gpu.limits().multiprocessors / cubes.max(1)).clamp(1, longest.div_ceil(OF_SPLIT).max(1));
    let given = (q, kv.words, kv.scales, Some(pages));
    if splits == 1 {
        start(gpu, heads, shape, queries, given, (out, None), (1, Writes::Outputs));
        return;
    }
    let of_split = queries.rows * heads.query;
    let (sums, extents) = (gpu.empty(splits * of_split * heads.dim), gpu.empty(splits * of_split * 2));
    let unsunk = Heads { sinks: None, ..heads };
    let parts = Shape { sunk: false, ..shape };
    start(gpu, unsunk, parts, queries, given, (&sums, Some(&extents)), (splits, Writes::Parts));
    combine(gpu, (&sums, &extents, heads.sinks), out, [splits, queries.rows, heads.query, heads.dim]);
}

type Given<'a> = (&'a Buffer, &'a Buffer, Option<&'a Buffer>, Option<&'a Buffer>);

fn start<R: Runtime>(
    gpu: &Gpu<R>,
    heads: Heads<'_>,
    shape: Shape,
    queries: &Queries<'_>,
    (q, words, scales, pages): Given<'_>,
    (out, extra): (&Buffer, Option<&Buffer>),
    (splits, writes): (usize, Writes),
) {
    if queries.count == 0 {
        return;
    }
    launch!(
        gpu,
        gpu.cubes(queries.count * shape.key_heads * splits),
        UNITS,
        forward_kernel,
        gpu.arg(q),
        gpu.arg(words),
        gpu.input(scales),
        gpu.input(pages),
        gpu.arg(queries.tiles),
        gpu.arg(queries.visible),
        gpu.input(heads.slopes.map(|slopes| slopes.of_heads)),
        gpu.input(heads.sinks),
        gpu.arg(out),
        gpu.output(extra),
        heads.scale,
        heads.cap.unwrap_or(1.0),
        heads.slopes.map_or(1.0, |slopes| slopes.factor),
        queries.count as u32,
        queries.rows as u32,
        splits as u32,
        shape,
        writes,
    );
}

#[cube(launch_unchecked)]
fn forward_kernel(
    q: &Array<f32>,
    words: &Array<u32>,
    scales: &Array<f32>,
    pages: &Array<u32>,
    tiles: &Array<u32>,
    visible: &Array<u32>,
    slopes: &Array<f32>,
    sinks: &Array<f32>,
    out: &mut Array<f32>,
    extra: &mut Array<f32>,
    scale: f32,
    cap: f32,
    factor: f32,
    count: u32,
    rows: u32,
    splits: u32,
    #[comptime] shape: Shape,
    #[comptime] writes: Writes,
) {
    let quads = comptime!(shape.quads());
    let stride = comptime!(shape.stride());
    // Units of a virtual query.
    let of_query = comptime!(UNITS / shape.queries);
    let own_keys = comptime!(shape.keys.div_ceil(of_query));
    let own_quads = comptime!(quads.div_ceil(of_query));
    let mut of_queries = SharedMemory::<Four>::new(comptime!(shape.queries * stride));
    let mut tile_of_keys = SharedMemory::<Four>::new(comptime!(shape.keys * stride));
    let mut scores = SharedMemory::<f32>::new(comptime!(shape.queries * shape.keys));
    let unit = UNIT_POS as usize;
    let (query, lane) = (unit / of_query, unit % of_query);
    let split = CUBE_POS % splits as usize;
    let key_head = CUBE_POS / splits as usize % shape.key_heads;
    let tile = CUBE_POS / splits as usize / shape.key_heads;
    if tile < count as usize {
        let tile = tile * QueryTile::WORDS;
        let (first_row, first, taken) = (tiles[tile] as usize, tiles[tile + 1] as usize, tiles[tile + 2] as usize);
        let (prefix, keys) = (tiles[tile + 3] as usize, tiles[tile + 4] as usize);
        let (all_from, all_to) = (tiles[tile + 5] as usize, tiles[tile + 6] as usize);
        // Whole tiles of keys.
        let of_split = (all_to - all_from).div_ceil(splits as usize).div_ceil(shape.keys) * shape.keys;
        let from = all_from + split * of_split;
        let to = min(from + of_split, all_to);
        let real = query < taken;
        let number = first + select(real, query, 0);
        let row = first_row + number / shape.group;
        let head = key_head * shape.group + number % shape.group;
        let (sees_from, sees_to) = (visible[2 * row] as usize, visible[2 * row + 1] as usize);
        let mut slope = f32::new(0.0);
        if comptime!(shape.sloped) {
            slope = slopes[head];
        }
        for at in range_stepped(unit, comptime!(shape.queries * quads), UNITS) {
            let (other, quad) = (at / quads, at % quads);
            let number = first + select(other < taken, other, 0);
            let start = (first_row + number / shape.group) * comptime!(shape.query_width())
                + (key_head * shape.group + number % shape.group) * shape.dim;
            of_queries[other * stride + quad] = four_of(q, start, quad, scale, shape.dim);
        }
        let mut largest = f32::new(LOWEST);
        let mut sum = f32::new(0.0);
        let mut sums = Array::<Four>::new(own_quads);
        #[unroll]
        for i in 0..own_quads {
            sums[i] = Four::new(0.0);
        }
        for base in range_stepped(from, to, shape.keys) {
            sync_cube();
            for at in range_stepped(unit, comptime!(shape.keys * quads), UNITS) {
                let (key, quad) = (at / quads, at % quads);
                let mut four = Four::new(0.0);
                if base + key < to {
                    four = kept_four(words, scales, pages, prefix, keys, base + key, quad, key_head, 0usize, shape);
                }
                tile_of_keys[key * stride + quad] = four;
            }
            sync_cube();
            let mut own = Array::<f32>::new(own_keys);
            #[unroll]
            for i in 0..own_keys {
                let key = lane + i * of_query;
                own[i] = LOWEST;
                if key < shape.keys {
                    let position = base + key;
                    if real && position >= sees_from && position < min(sees_to, to) {
                        let product = dot_of(&of_queries, query * stride, &tile_of_keys, key * stride, quads);
                        own[i] = score_of(product, cap, slope, factor, position, shape);
                    }
                    scores[query * shape.keys + key] = own[i];
                }
            }
            sync_cube();
            let mut now = largest;
            for key in 0..shape.keys {
                now = max(now, scores[query * shape.keys + key]);
            }
            for at in range_stepped(unit, comptime!(shape.keys * quads), UNITS) {
                let (key, quad) = (at / quads, at % quads);
                // What is in slots that nothing was written to may be anything, and zero times anything is not zero.
                let mut four = Four::new(0.0);
                if base + key < to {
                    four = kept_four(words, scales, pages, prefix, keys, base + key, quad, key_head, 1usize, shape);
                }
                tile_of_keys[key * stride + quad] = four;
            }
            sync_cube();
            #[unroll]
            for i in 0..own_keys {
                let key = lane + i * of_query;
                if key < shape.keys {
                    let position = base + key;
                    let seen = real && position >= sees_from && position < min(sees_to, to);
                    scores[query * shape.keys + key] = select(seen, f32::exp(own[i] - now), f32::new(0.0));
                }
            }
            sync_cube();
            let fade = f32::exp(largest - now);
            sum *= fade;
            #[unroll]
            for i in 0..own_quads {
                sums[i] *= Four::new(fade);
            }
            for key in 0..shape.keys {
                let p = scores[query * shape.keys + key];
                sum += p;
                #[unroll]
                for i in 0..own_quads {
                    let quad = lane + i * of_query;
                    if quad < quads {
                        sums[i] += tile_of_keys[key * stride + quad] * Four::new(p);
                    }
                }
            }
            largest = now;
        }
        if real {
            let out_row = row * comptime!(shape.key_heads * shape.group) + head;
            if comptime!(writes == Writes::Parts) {
                let place = split * rows as usize * comptime!(shape.key_heads * shape.group) + out_row;
                if lane == 0 {
                    extra[2 * place] = largest;
                    extra[2 * place + 1] = sum;
                }
                write_own(out, &sums, place, lane, f32::new(1.0), own_quads, of_query, shape);
            } else {
                if comptime!(shape.sunk) {
                    let sink = sinks[head];
                    let now = max(largest, sink);
                    let fade = f32::exp(largest - now);
                    sum = sum * fade + f32::exp(sink - now);
                    #[unroll]
                    for i in 0..own_quads {
                        sums[i] *= Four::new(fade);
                    }
                    largest = now;
                }
                if comptime!(writes == Writes::Logarithms) {
                    if lane == 0 {
                        extra[out_row] = largest + f32::ln(sum);
                    }
                }
                write_own(out, &sums, out_row, lane, 1.0 / sum, own_quads, of_query, shape);
            }
        }
    }
}

#[cube]
fn write_own(
    out: &mut Array<f32>,
    sums: &Array<Four>,
    place: usize,
    lane: usize,
    scale: f32,
    #[comptime] own_quads: usize,
    #[comptime] of_query: usize,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..own_quads {
        let quad = lane + i * of_query;
        let four = sums[i];
        #[unroll]
        for j in 0..4usize {
            if quad * 4 + j < shape.dim {
                out[place * shape.dim + quad * 4 + j] = four[j] * scale;
            }
        }
    }
}
