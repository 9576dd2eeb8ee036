//! Many rows, and products with a weight's columns: tiles of the result, whose factors come through shared memory.

use cubecl::prelude::*;

use super::{Columns, Onto, Product, Weight};
use crate::gpu::Gpu;
use crate::words::{BLOCK, offset_of, scale_of, weight_of_word};
use crate::{Format, launch};

/// Rows and columns of a tile.
const TILE: usize = 64;
/// Depth of a tile: that of a block with one scale.
const DEPTH: usize = 32;
/// Rows, and columns, of a tile that a unit has.
const OWN: usize = 4;
/// Units in a row of a tile.
const ACROSS: usize = TILE / OWN;
/// Units of a cube.
const UNITS: usize = ACROSS * ACROSS;
/// Weights that a unit widens at a time: as many as are in the fullest word.
const RUN: usize = 8;
/// Values from one step of the depth to the next in shared memory, so that neighbours are in other banks.
const STRIDE: usize = TILE + 4;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    format: Format,
    back: bool,
    biased: bool,
    added: bool,
    two: bool,
}

pub(super) fn launch<R: Runtime>(gpu: &Gpu<R>, weight: &Weight, columns: Columns, given: Product<'_>, onto: Onto<'_>) {
    let format = weight.format;
    let shape = Shape {
        format,
        back: given.back,
        biased: given.bias.is_some(),
        added: onto.is_added(),
        two: matches!(onto, Onto::WriteTwo(..)),
    };
    let results = if given.back { weight.inputs } else { columns.count };
    let (out, second) = onto.outputs();
    let (across, down) = (results.div_ceil(TILE), given.rows.div_ceil(TILE));
    gpu.counts().read(weight.bytes() * (down * columns.count) as u64 / weight.outputs.max(1) as u64);
    launch!(
        gpu,
        gpu.cubes(across * down),
        UNITS,
        tiled_kernel,
        gpu.arg(given.x),
        gpu.arg(&weight.words),
        gpu.input(weight.scales.as_ref()),
        gpu.input(weight.steps.as_ref()),
        gpu.input(weight.table.as_ref()),
        gpu.input(given.bias),
        gpu.arg(out),
        gpu.output(second),
        given.first as u32,
        given.rows as u32,
        weight.inputs as u32,
        format.words_of_row(weight.inputs) as u32,
        format.scale_words_of_row(weight.inputs) as u32,
        columns.first as u32,
        columns.count as u32,
        onto.first() as u32,
        onto.split(results) as u32,
        down as u32,
        shape,
    );
}

#[cube(launch_unchecked)]
fn tiled_kernel(
    x: &Array<f32>,
    words: &Array<u32>,
    scales: &Array<u32>,
    steps: &Array<f32>,
    table: &Array<f32>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    second: &mut Array<f32>,
    first: u32,
    rows: u32,
    inputs: u32,
    words_of_row: u32,
    scale_words: u32,
    first_column: u32,
    columns: u32,
    first_out: u32,
    split: u32,
    down: u32,
    #[comptime] shape: Shape,
) {
    let mut left = SharedMemory::<f32>::new(comptime!(DEPTH * STRIDE));
    let mut right = SharedMemory::<f32>::new(comptime!(DEPTH * STRIDE));
    let mut meanings = SharedMemory::<f32>::new(16usize);
    let unit = UNIT_POS as usize;
    let (rows, inputs, columns) = (rows as usize, inputs as usize, columns as usize);
    let (words_of_row, scale_words, first_column) =
        (words_of_row as usize, scale_words as usize, first_column as usize);
    // Cubes that compute at a time share columns, so that the weight is read from memory once.
    let first_row = CUBE_POS % down as usize * TILE;
    let first_result = CUBE_POS / down as usize * TILE;
    let (mut depth, mut results) = (inputs, columns);
    if comptime!(shape.back) {
        depth = columns;
        results = inputs;
    }
    if comptime!(shape.format == Format::Table) {
        if unit < 16 {
            meanings[unit] = table[unit];
        }
        sync_cube();
    }
    let (y, across) = (unit / ACROSS * OWN, unit % ACROSS * OWN);
    let mut sums = Array::<f32>::new(comptime!(OWN * OWN));
    #[unroll]
    for i in 0..comptime!(OWN * OWN) {
        sums[i] = 0.0;
    }
    for step in range_stepped(0, depth, DEPTH) {
        // A row of `x` is read by neighbours.
        let (row, from) = (unit / comptime!(DEPTH / RUN), unit % comptime!(DEPTH / RUN) * RUN);
        #[unroll]
        for i in 0..RUN {
            let mut value = f32::new(0.0);
            if first_row + row < rows && step + from + i < depth {
                value = x[(first as usize + first_row + row) * depth + step + from + i];
            }
            left[(from + i) * STRIDE + row] = value;
        }
        if comptime!(shape.back) {
            // Rows of the weight are the depth.
            let (of_depth, column) = (unit / comptime!(TILE / RUN), unit % comptime!(TILE / RUN) * RUN);
            let row = first_column + min(step + of_depth, columns - 1);
            let run =
                widen(words, scales, steps, &meanings, row, first_result + column, words_of_row, scale_words, shape);
            #[unroll]
            for i in 0..RUN {
                right[of_depth * STRIDE + column + i] = run[i];
            }
        } else {
            let (column, of_depth) = (unit / comptime!(DEPTH / RUN), unit % comptime!(DEPTH / RUN) * RUN);
            let row = first_column + min(first_result + column, columns - 1);
            let run = widen(words, scales, steps, &meanings, row, step + of_depth, words_of_row, scale_words, shape);
            #[unroll]
            for i in 0..RUN {
                right[(of_depth + i) * STRIDE + column] = run[i];
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..DEPTH {
            let mut of_left = Array::<f32>::new(OWN);
            let mut of_right = Array::<f32>::new(OWN);
            #[unroll]
            for j in 0..OWN {
                of_left[j] = left[i * STRIDE + y + j];
                of_right[j] = right[i * STRIDE + across + j];
            }
            #[unroll]
            for a in 0..OWN {
                #[unroll]
                for b in 0..OWN {
                    sums[a * OWN + b] += of_left[a] * of_right[b];
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for a in 0..OWN {
        #[unroll]
        for b in 0..OWN {
            let (row, column) = (first_row + y + a, first_result + across + b);
            if row < rows && column < results {
                let mut value = sums[a * OWN + b];
                if comptime!(shape.biased) {
                    value += bias[first_column + column];
                }
                let (row, split) = (first_out as usize + row, split as usize);
                if comptime!(shape.two) {
                    if column < split {
                        out[row * split + column] = value;
                    } else {
                        second[row * (results - split) + column - split] = value;
                    }
                } else if comptime!(shape.added) {
                    out[row * results + column] += value;
                } else {
                    out[row * results + column] = value;
                }
            }
        }
    }
}

/// [`RUN`] neighbours of a row of the weight from `from` on, a multiple of as many. What is behind the row is anything finite.
#[cube]
fn widen(
    words: &Array<u32>,
    scales: &Array<u32>,
    steps: &Array<f32>,
    meanings: &SharedMemory<f32>,
    row: usize,
    from: usize,
    words_of_row: usize,
    scale_words: usize,
    #[comptime] shape: Shape,
) -> Array<f32> {
    let of_word = comptime!(shape.format.of_word());
    let mut run = Array::<f32>::new(RUN);
    let first = from / of_word;
    let mut scale = f32::new(0.0);
    let mut offset = f32::new(0.0);
    if first < words_of_row {
        scale = scale_of(scales, steps, row, from / BLOCK, scale_words, shape.format);
        offset = offset_of(scales, steps, row, from / BLOCK, scale_words, shape.format);
    }
    #[unroll]
    for at in 0..comptime!(RUN / of_word) {
        let mut word = 0u32;
        if first + at < words_of_row {
            word = words[row * words_of_row + first + at];
        }
        #[unroll]
        for part in 0..of_word {
            let value = weight_of_word(word, meanings, part, shape.format);
            run[at * of_word + part] = value * scale + offset;
        }
    }
    run
}
