//! Gradients of keys and values: a tile of keys meets all queries that see any of it.

use cubecl::prelude::*;

use super::super::source::row_four;
use super::super::{Four, Heads, Shape, UNITS, dot_of, four_of, score_of};
use super::queries::bent;
use super::{Given, KeyTile};
use crate::gpu::{Buffer, Gpu};
use crate::launch;

pub(super) fn launch_keys<R: Runtime>(
    gpu: &Gpu<R>,
    heads: Heads<'_>,
    shape: Shape,
    (tiles, count): (&Buffer, usize),
    visible: &Buffer,
    Given { q, kv, d_output }: Given<'_>,
    (logarithms, along): (&Buffer, &Buffer),
    dkv: &Buffer,
) {
    if count == 0 {
        return;
    }
    launch!(
        gpu,
        gpu.cubes(count * shape.key_heads),
        UNITS,
        keys_kernel,
        gpu.arg(q),
        gpu.arg(kv),
        gpu.arg(d_output),
        gpu.arg(logarithms),
        gpu.arg(along),
        gpu.arg(tiles),
        gpu.arg(visible),
        gpu.input(heads.slopes.map(|slopes| slopes.of_heads)),
        gpu.arg(dkv),
        heads.scale,
        heads.cap.unwrap_or(1.0),
        heads.slopes.map_or(1.0, |slopes| slopes.factor),
        count as u32,
        shape,
    );
}

#[cube(launch_unchecked)]
fn keys_kernel(
    q: &Array<f32>,
    kv: &Array<u32>,
    d_output: &Array<f32>,
    logarithms: &Array<f32>,
    along: &Array<f32>,
    tiles: &Array<u32>,
    visible: &Array<u32>,
    slopes: &Array<f32>,
    dkv: &mut Array<f32>,
    scale: f32,
    cap: f32,
    factor: f32,
    count: u32,
    #[comptime] shape: Shape,
) {
    let quads = comptime!(shape.quads());
    let stride = comptime!(shape.stride());
    let width = comptime!(shape.key_heads * shape.dim);
    // Units of a key.
    let of_key = comptime!(UNITS / shape.keys);
    let own_queries = comptime!(shape.queries.div_ceil(of_key));
    let own_quads = comptime!(quads.div_ceil(of_key));
    let mut tile_of_keys = SharedMemory::<Four>::new(comptime!(shape.keys * stride));
    let mut tile_of_values = SharedMemory::<Four>::new(comptime!(shape.keys * stride));
    let mut of_queries = SharedMemory::<Four>::new(comptime!(shape.queries * stride));
    let mut of_outputs = SharedMemory::<Four>::new(comptime!(shape.queries * stride));
    let mut probabilities = SharedMemory::<f32>::new(comptime!(shape.queries * shape.keys));
    let mut gradients = SharedMemory::<f32>::new(comptime!(shape.queries * shape.keys));
    let unit = UNIT_POS as usize;
    let (key, lane) = (unit / of_key, unit % of_key);
    let key_head = CUBE_POS % shape.key_heads;
    let tile = CUBE_POS / shape.key_heads;
    if tile < count as usize {
        let tile = tile * KeyTile::WORDS;
        let (first_key, taken, first_position) =
            (tiles[tile] as usize, tiles[tile + 1] as usize, tiles[tile + 2] as usize);
        let (from, to) = (tiles[tile + 3] as usize, tiles[tile + 4] as usize);
        let first_out = tiles[tile + 5] as usize;
        let position = first_position + key;
        for at in range_stepped(unit, comptime!(shape.keys * quads), UNITS) {
            let (other, quad) = (at / quads, at % quads);
            let mut key_four = Four::new(0.0);
            let mut value_four = Four::new(0.0);
            if other < taken {
                let start = (first_key + other) * comptime!(2 * width) + key_head * shape.dim;
                key_four = row_four(kv, start, quad, shape.dim);
                value_four = row_four(kv, start + width, quad, shape.dim);
            }
            tile_of_keys[other * stride + quad] = key_four;
            tile_of_values[other * stride + quad] = value_four;
        }
        let mut of_keys = Array::<Four>::new(own_quads);
        let mut of_values = Array::<Four>::new(own_quads);
        #[unroll]
        for i in 0..own_quads {
            of_keys[i] = Four::new(0.0);
            of_values[i] = Four::new(0.0);
        }
        let virtual_queries = (to - from) * shape.group;
        for base in range_stepped(0, virtual_queries, shape.queries) {
            sync_cube();
            for at in range_stepped(unit, comptime!(shape.queries * quads), UNITS) {
                let (other, quad) = (at / quads, at % quads);
                let number = min(base + other, virtual_queries - 1);
                let start = (from + number / shape.group) * comptime!(shape.query_width())
                    + (key_head * shape.group + number % shape.group) * shape.dim;
                of_queries[other * stride + quad] = four_of(q, start, quad, scale, shape.dim);
                of_outputs[other * stride + quad] = four_of(d_output, start, quad, f32::new(1.0), shape.dim);
            }
            sync_cube();
            #[unroll]
            for i in 0..own_queries {
                let query = lane + i * of_key;
                if query < shape.queries {
                    let number = base + query;
                    let mut p = f32::new(0.0);
                    let mut gradient = f32::new(0.0);
                    if number < virtual_queries && key < taken {
                        let row = from + number / shape.group;
                        let head = key_head * shape.group + number % shape.group;
                        if position >= visible[2 * row] as usize && position < visible[2 * row + 1] as usize {
                            let place = row * comptime!(shape.key_heads * shape.group) + head;
                            let mut slope = f32::new(0.0);
                            if comptime!(shape.sloped) {
                                slope = slopes[head];
                            }
                            let product = dot_of(&of_queries, query * stride, &tile_of_keys, key * stride, quads);
                            let score = score_of(product, cap, slope, factor, position, shape);
                            p = f32::exp(score - logarithms[place]);
                            let of_p = dot_of(&of_outputs, query * stride, &tile_of_values, key * stride, quads);
                            gradient = p * (of_p - along[place]) * bent(product, cap, shape);
                        }
                    }
                    probabilities[query * shape.keys + key] = p;
                    gradients[query * shape.keys + key] = gradient;
                }
            }
            sync_cube();
            for query in 0..shape.queries {
                let p = probabilities[query * shape.keys + key];
                let gradient = gradients[query * shape.keys + key];
                #[unroll]
                for i in 0..own_quads {
                    let quad = lane + i * of_key;
                    if quad < quads {
                        of_values[i] += of_outputs[query * stride + quad] * Four::new(p);
                        // The queries are scaled.
                        of_keys[i] += of_queries[query * stride + quad] * Four::new(gradient);
                    }
                }
            }
        }
        if key < taken {
            #[unroll]
            for i in 0..own_quads {
                let quad = lane + i * of_key;
                let (key_four, value_four) = (of_keys[i], of_values[i]);
                #[unroll]
                for j in 0..4usize {
                    if quad * 4 + j < shape.dim {
                        let at = (first_out + key) * comptime!(2 * width) + key_head * shape.dim + quad * 4 + j;
                        dkv[at] = key_four[j];
                        dkv[at + width] = value_four[j];
                    }
                }
            }
        }
    }
}
