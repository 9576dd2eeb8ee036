//! Gradients of queries: a tile of queries meets all keys that it sees.

use cubecl::prelude::*;

use super::super::source::kept_four;
use super::super::{Four, Heads, Queries, QueryTile, Shape, UNITS, dot_of, four_of, score_of, tanh};
use super::Given;
use crate::gpu::{Buffer, Gpu};
use crate::launch;

pub(super) fn launch_queries<R: Runtime>(
    gpu: &Gpu<R>,
    heads: Heads<'_>,
    shape: Shape,
    queries: &Queries<'_>,
    Given { q, kv, d_output }: Given<'_>,
    (logarithms, along): (&Buffer, &Buffer),
    dq: &Buffer,
) {
    if queries.count == 0 {
        return;
    }
    launch!(
        gpu,
        gpu.cubes(queries.count * shape.key_heads),
        UNITS,
        queries_kernel,
        gpu.arg(q),
        gpu.arg(kv),
        gpu.arg(d_output),
        gpu.arg(logarithms),
        gpu.arg(along),
        gpu.arg(queries.tiles),
        gpu.arg(queries.visible),
        gpu.input(heads.slopes.map(|slopes| slopes.of_heads)),
        gpu.arg(dq),
        heads.scale,
        heads.cap.unwrap_or(1.0),
        heads.slopes.map_or(1.0, |slopes| slopes.factor),
        queries.count as u32,
        shape,
    );
}

#[cube(launch_unchecked)]
fn queries_kernel(
    q: &Array<f32>,
    kv: &Array<u32>,
    d_output: &Array<f32>,
    logarithms: &Array<f32>,
    along: &Array<f32>,
    tiles: &Array<u32>,
    visible: &Array<u32>,
    slopes: &Array<f32>,
    dq: &mut Array<f32>,
    scale: f32,
    cap: f32,
    factor: f32,
    count: u32,
    #[comptime] shape: Shape,
) {
    let quads = comptime!(shape.quads());
    let stride = comptime!(shape.stride());
    let of_query = comptime!(UNITS / shape.queries);
    let own_keys = comptime!(shape.keys.div_ceil(of_query));
    let own_quads = comptime!(quads.div_ceil(of_query));
    let mut of_queries = SharedMemory::<Four>::new(comptime!(shape.queries * stride));
    let mut of_outputs = SharedMemory::<Four>::new(comptime!(shape.queries * stride));
    let mut tile_of_keys = SharedMemory::<Four>::new(comptime!(shape.keys * stride));
    let mut tile_of_values = SharedMemory::<Four>::new(comptime!(shape.keys * stride));
    let mut gradients = SharedMemory::<f32>::new(comptime!(shape.queries * shape.keys));
    let unit = UNIT_POS as usize;
    let (query, lane) = (unit / of_query, unit % of_query);
    let key_head = CUBE_POS % shape.key_heads;
    let tile = CUBE_POS / shape.key_heads;
    if tile < count as usize {
        let tile = tile * QueryTile::WORDS;
        let (first_row, first, taken) = (tiles[tile] as usize, tiles[tile + 1] as usize, tiles[tile + 2] as usize);
        let (prefix, keys) = (tiles[tile + 3] as usize, tiles[tile + 4] as usize);
        let (from, to) = (tiles[tile + 5] as usize, tiles[tile + 6] as usize);
        let real = query < taken;
        let number = first + select(real, query, 0);
        let row = first_row + number / shape.group;
        let head = key_head * shape.group + number % shape.group;
        let place = row * comptime!(shape.key_heads * shape.group) + head;
        let (sees_from, sees_to) = (visible[2 * row] as usize, visible[2 * row + 1] as usize);
        let (logarithm, drift) = (logarithms[place], along[place]);
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
            of_outputs[other * stride + quad] = four_of(d_output, start, quad, f32::new(1.0), shape.dim);
        }
        let mut sums = Array::<Four>::new(own_quads);
        #[unroll]
        for i in 0..own_quads {
            sums[i] = Four::new(0.0);
        }
        for base in range_stepped(from, to, shape.keys) {
            sync_cube();
            for at in range_stepped(unit, comptime!(shape.keys * quads), UNITS) {
                let (key, quad) = (at / quads, at % quads);
                let mut key_four = Four::new(0.0);
                let mut value_four = Four::new(0.0);
                if base + key < to {
                    key_four = kept_four(kv, q, kv, prefix, keys, base + key, quad, key_head, 0usize, shape);
                    value_four = kept_four(kv, q, kv, prefix, keys, base + key, quad, key_head, 1usize, shape);
                }
                tile_of_keys[key * stride + quad] = key_four;
                tile_of_values[key * stride + quad] = value_four;
            }
            sync_cube();
            #[unroll]
            for i in 0..own_keys {
                let key = lane + i * of_query;
                if key < shape.keys {
                    let position = base + key;
                    let mut gradient = f32::new(0.0);
                    if real && position >= sees_from && position < min(sees_to, to) {
                        let product = dot_of(&of_queries, query * stride, &tile_of_keys, key * stride, quads);
                        let score = score_of(product, cap, slope, factor, position, shape);
                        let p = f32::exp(score - logarithm);
                        let of_p = dot_of(&of_outputs, query * stride, &tile_of_values, key * stride, quads);
                        gradient = p * (of_p - drift) * bent(product, cap, shape);
                    }
                    gradients[query * shape.keys + key] = gradient;
                }
            }
            sync_cube();
            for key in 0..shape.keys {
                let gradient = gradients[query * shape.keys + key];
                #[unroll]
                for i in 0..own_quads {
                    let quad = lane + i * of_query;
                    if quad < quads {
                        sums[i] += tile_of_keys[key * stride + quad] * Four::new(gradient);
                    }
                }
            }
        }
        if real {
            #[unroll]
            for i in 0..own_quads {
                let quad = lane + i * of_query;
                let four = sums[i];
                #[unroll]
                for j in 0..4usize {
                    if quad * 4 + j < shape.dim {
                        dq[place * shape.dim + quad * 4 + j] = four[j] * scale;
                    }
                }
            }
        }
    }
}

/// How much of a score's gradient the soft cap lets through.
#[cube]
pub(super) fn bent(product: f32, cap: f32, #[comptime] shape: Shape) -> f32 {
    let mut slope = f32::new(1.0);
    if comptime!(shape.capped) {
        let t = tanh(product / cap);
        slope = 1.0 - t * t;
    }
    slope
}
