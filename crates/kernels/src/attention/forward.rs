//! The forward, of rows and of caches.

use cubecl::prelude::*;

use super::board::{
    FIRST, FIRST_ROW, FROM, KEY_HEAD, KEYS, LARGEST, NOW, PLAN, PREFIX, SEEN, SLOPE, SPLIT, SUM, TAKEN, TO, ZERO,
    board_words, sees, unit_again,
};
use super::combine::combine;
use super::source::kept_four;
use super::{Four, Heads, LOWEST, Queries, QueryTile, Shape, UNITS, dot_of, four_of, score_of};
use crate::cache::Kv;
use crate::gpu::{Buffer, Gpu};
use crate::launch;

/// Fewest positions that are worth a cube of their own.
const OF_SPLIT: usize = 256;
/// Runs of four that a unit loads before it stores the first of them.
const AHEAD: usize = 4;

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
    // Queries, and behind them a tile of keys or of values.
    let mut fours = SharedMemory::<Four>::new(comptime!((shape.queries + shape.keys) * stride));
    let tile_at = comptime!(shape.queries * stride);
    let mut board = SharedMemory::<u32>::new(comptime!(board_words(shape)));
    let plan = comptime!(shape.queries * shape.keys);
    let seen_at = comptime!(plan + PLAN);
    // Cubes have one dimension, and the compiler knows how large a unit's number is if it is that of the dimension.
    let unit = UNIT_POS_X as usize;
    if CUBE_POS < count as usize * splits as usize * shape.key_heads {
        if unit < shape.queries {
            let split = CUBE_POS % splits as usize;
            let key_head = CUBE_POS / splits as usize % shape.key_heads;
            let tile = CUBE_POS / splits as usize / shape.key_heads * QueryTile::WORDS;
            let (first_row, first, taken) = (tiles[tile] as usize, tiles[tile + 1] as usize, tiles[tile + 2] as usize);
            let (all_from, all_to) = (tiles[tile + 5] as usize, tiles[tile + 6] as usize);
            // Whole tiles of keys.
            let of_split = (all_to - all_from).div_ceil(splits as usize).div_ceil(shape.keys) * shape.keys;
            let from = all_from + split * of_split;
            let to = min(from + of_split, all_to);
            if unit == 0 {
                board[comptime!(plan + FROM)] = from as u32;
                board[comptime!(plan + TO)] = to as u32;
                board[comptime!(plan + PREFIX)] = tiles[tile + 3];
                board[comptime!(plan + KEYS)] = tiles[tile + 4];
                board[comptime!(plan + KEY_HEAD)] = key_head as u32;
                board[comptime!(plan + FIRST_ROW)] = first_row as u32;
                board[comptime!(plan + FIRST)] = first as u32;
                board[comptime!(plan + TAKEN)] = taken as u32;
                board[comptime!(plan + SPLIT)] = split as u32;
                board[comptime!(plan + ZERO)] = 0u32;
            }
            let mut sees_from = 0u32;
            let mut sees_to = 0u32;
            let mut slope = f32::new(0.0);
            if unit < taken {
                let number = first + unit;
                let row = first_row + number / shape.group;
                sees_from = visible[2 * row];
                sees_to = min(visible[2 * row + 1], to as u32);
                if comptime!(shape.sloped) {
                    slope = slopes[key_head * shape.group + number % shape.group];
                }
            }
            board[seen_at + unit * SEEN] = sees_from;
            board[seen_at + unit * SEEN + 1] = sees_to;
            board[seen_at + unit * SEEN + SLOPE] = u32::reinterpret(slope);
            board[seen_at + unit * SEEN + NOW] = comptime!(LOWEST.to_bits());
            board[seen_at + unit * SEEN + SUM] = 0u32;
        }
        sync_cube();
        for at in range_stepped(unit, comptime!(shape.queries * quads), UNITS) {
            let (other, quad) = (at / quads, at % quads);
            let taken = board[comptime!(plan + TAKEN)] as usize;
            let number = board[comptime!(plan + FIRST)] as usize + select(other < taken, other, 0);
            let row = board[comptime!(plan + FIRST_ROW)] as usize + number / shape.group;
            let head = board[comptime!(plan + KEY_HEAD)] as usize * shape.group + number % shape.group;
            let start = row * comptime!(shape.query_width()) + head * shape.dim;
            fours[other * stride + quad] = four_of(q, start, quad, scale, shape.dim);
        }
        let mut sums = Array::<Four>::new(own_quads);
        #[unroll]
        for i in 0..own_quads {
            sums[i] = Four::new(0.0);
        }
        let mut base = board[comptime!(plan + FROM)] as usize;
        while base < board[comptime!(plan + TO)] as usize {
            sync_cube();
            let unit = unit_again(&board, shape);
            let of_own = seen_at + unit / of_query * SEEN;
            if unit % of_query == 0 {
                board[of_own + LARGEST] = board[of_own + NOW];
            }
            load_tile(&mut fours, &board, words, scales, pages, base, 0usize, shape);
            sync_cube();
            let unit = unit_again(&board, shape);
            let (query, lane) = (unit / of_query, unit % of_query);
            #[unroll]
            for i in 0..own_keys {
                let key = lane + i * of_query;
                if key < shape.keys {
                    let mut score = f32::new(LOWEST);
                    if sees(&board, query, base + key, shape) {
                        let product = dot_of(&fours, query * stride, &fours, tile_at + key * stride, quads);
                        let slope = f32::reinterpret(board[seen_at + query * SEEN + SLOPE]);
                        score = score_of(product, cap, slope, factor, base + key, shape);
                    }
                    board[query * shape.keys + key] = u32::reinterpret(score);
                }
            }
            sync_cube();
            let unit = unit_again(&board, shape);
            let (query, lane) = (unit / of_query, unit % of_query);
            let mut now = f32::reinterpret(board[seen_at + query * SEEN + LARGEST]);
            for key in 0..shape.keys {
                now = max(now, f32::reinterpret(board[query * shape.keys + key]));
            }
            if lane == 0 {
                board[seen_at + query * SEEN + NOW] = u32::reinterpret(now);
            }
            load_tile(&mut fours, &board, words, scales, pages, base, 1usize, shape);
            sync_cube();
            let unit = unit_again(&board, shape);
            let (query, lane) = (unit / of_query, unit % of_query);
            let now = f32::reinterpret(board[seen_at + query * SEEN + NOW]);
            #[unroll]
            for i in 0..own_keys {
                let key = lane + i * of_query;
                if key < shape.keys {
                    let score = f32::reinterpret(board[query * shape.keys + key]);
                    let p = select(sees(&board, query, base + key, shape), f32::exp(score - now), f32::new(0.0));
                    board[query * shape.keys + key] = u32::reinterpret(p);
                }
            }
            sync_cube();
            let unit = unit_again(&board, shape);
            let (query, lane) = (unit / of_query, unit % of_query);
            let of_own = seen_at + query * SEEN;
            let fade = f32::exp(f32::reinterpret(board[of_own + LARGEST]) - f32::reinterpret(board[of_own + NOW]));
            #[unroll]
            for i in 0..own_quads {
                sums[i] *= Four::new(fade);
            }
            let mut sum = f32::new(0.0);
            for key in 0..shape.keys {
                let p = f32::reinterpret(board[query * shape.keys + key]);
                sum += p;
                #[unroll]
                for i in 0..own_quads {
                    let quad = lane + i * of_query;
                    if quad < quads {
                        sums[i] += fours[tile_at + key * stride + quad] * Four::new(p);
                    }
                }
            }
            // Nobody else reads this one before the end.
            if lane == 0 {
                board[of_own + SUM] = u32::reinterpret(f32::reinterpret(board[of_own + SUM]) * fade + sum);
            }
            base += shape.keys;
        }
        sync_cube();
        let unit = unit_again(&board, shape);
        let (query, lane) = (unit / of_query, unit % of_query);
        let mut largest = f32::reinterpret(board[seen_at + query * SEEN + NOW]);
        let mut sum = f32::reinterpret(board[seen_at + query * SEEN + SUM]);
        if query < board[comptime!(plan + TAKEN)] as usize {
            let number = board[comptime!(plan + FIRST)] as usize + query;
            let head = board[comptime!(plan + KEY_HEAD)] as usize * shape.group + number % shape.group;
            let row = board[comptime!(plan + FIRST_ROW)] as usize + number / shape.group;
            // Rows of a part are behind those of the parts before; without parts there is one.
            let row = board[comptime!(plan + SPLIT)] as usize * rows as usize + row;
            let place = row * comptime!(shape.key_heads * shape.group) + head;
            if comptime!(writes == Writes::Parts) {
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
                        extra[place] = largest + f32::ln(sum);
                    }
                }
                write_own(out, &sums, place, lane, 1.0 / sum, own_quads, of_query, shape);
            }
        }
    }
}

/// Keys (`side` 0) or values (1) of a tile from position `base` on, behind the queries in shared memory.
#[cube]
fn load_tile(
    fours: &mut SharedMemory<Four>,
    board: &SharedMemory<u32>,
    words: &Array<u32>,
    scales: &Array<f32>,
    pages: &Array<u32>,
    base: usize,
    #[comptime] side: usize,
    #[comptime] shape: Shape,
) {
    let quads = comptime!(shape.quads());
    let stride = comptime!(shape.stride());
    let plan = comptime!(shape.queries * shape.keys);
    let to = board[comptime!(plan + TO)] as usize;
    let (prefix, keys) = (board[comptime!(plan + PREFIX)] as usize, board[comptime!(plan + KEYS)] as usize);
    let key_head = board[comptime!(plan + KEY_HEAD)] as usize;
    let total = comptime!(shape.keys * quads);
    let turns = comptime!(total.div_ceil(UNITS));
    #[unroll]
    for batch in 0..comptime!(turns.div_ceil(AHEAD)) {
        let many = comptime!(AHEAD.min(turns - batch * AHEAD));
        // Read behind what the batch before stores, so that no more than a batch is under way.
        let unit = unit_again(board, shape);
        let mut loaded = Array::<Four>::new(many);
        #[unroll]
        for turn in 0..many {
            let at = unit + comptime!((batch * AHEAD + turn) * UNITS);
            let (key, quad) = (at / quads, at % quads);
            // What is in slots that nothing was written to may be anything, and zero times anything is not zero.
            loaded[turn] = Four::new(0.0);
            if base + key < to {
                loaded[turn] = kept_four(words, scales, pages, prefix, keys, base + key, quad, key_head, side, shape);
            }
        }
        #[unroll]
        for turn in 0..many {
            let at = unit + comptime!((batch * AHEAD + turn) * UNITS);
            let place = comptime!(shape.queries * stride) + at / quads * stride + at % quads;
            if comptime!((batch * AHEAD + turn + 1) * UNITS <= total) {
                fours[place] = loaded[turn];
            } else if at < total {
                fours[place] = loaded[turn];
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
