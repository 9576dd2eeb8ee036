//! Few rows: each weight is read once, and multiplied by all of them.
//!
//! [`LANES`] units take a few of the weight's rows together: each reads every so many words of them, so that neighbours read neighbours, and their sums are
//! added in the end. The rows of `x` come through shared memory, a tile of the depth at a time, in the order in which units need them; what will be
//! multiplied by a tile is loaded before that, so that both waits are one.

use cubecl::prelude::*;

use super::slots::{Slots, collect, first_column_of, from_of, is_here, own_len, place_of};
use super::{Columns, Inside, Onto, Product, Weight};
use crate::activation::{Activation, gated};
use crate::gpu::Gpu;
use crate::mixture::Chosen;
use crate::words::{BLOCK, offset_of, scale_of, weight_of_word};
use crate::{Format, LANES, launch};

/// Groups of [`LANES`] units in a cube.
const GROUPS: usize = 4;
/// Units of a cube.
const UNITS: usize = GROUPS * LANES;
/// Most rows that are multiplied at a time.
const ROWS: usize = 16;
/// Values of `x` that each of [`LANES`] units has in shared memory.
const OF_LANE: usize = 128;
/// Words of a row that a unit loads at a time, at most.
const AHEAD: usize = 8;
/// The same of an expert that was chosen: with more of them CUDA's compiler keeps some registers in memory, in some orders of shared memory.
const AHEAD_CHOSEN: usize = 4;
/// Sums that are added at a time where planes cannot.
const SUMS: usize = 8;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    format: Format,
    /// Rows of `x` at a time.
    rows: usize,
    /// Rows of the weight that a group takes.
    taken: usize,
    /// Words of each of them that a unit loads at a time.
    ahead: usize,
    gate: Option<Activation>,
    biased: bool,
    added: bool,
    two: bool,
    planes: bool,
    /// If experts were chosen, what a row of cubes is for.
    slots: Option<Slots>,
}

impl Shape {
    /// Values of a tile of the depth.
    fn depth(self) -> usize {
        LANES * self.ahead * self.format.of_word()
    }

    /// Sums of a unit.
    fn sums(self) -> usize {
        self.taken * self.rows
    }

    /// Results of a group for each row.
    fn results(self) -> usize {
        if self.gate.is_some() { self.taken / 2 } else { self.taken }
    }
}

pub(super) fn launch<R: Runtime>(gpu: &Gpu<R>, weight: &Weight, columns: Columns, given: Product<'_>, onto: Onto<'_>) {
    start(gpu, weight, columns, given, onto, None);
}

/// As [`launch`] for each choice of an expert: `columns` are the first expert's, the others' are behind, and so are biases. `given` has as many rows as there are choices, each
/// from the row of `x` that `of_row` of them share.
pub(super) fn launch_chosen<R: Runtime>(
    gpu: &Gpu<R>,
    weight: &Weight,
    columns: Columns,
    given: Product<'_>,
    onto: Onto<'_>,
    (chosen, of_row): (&Chosen, usize),
) {
    start(gpu, weight, columns, given, onto, Some((chosen, of_row)));
}

fn start<R: Runtime>(
    gpu: &Gpu<R>,
    weight: &Weight,
    columns: Columns,
    given: Product<'_>,
    onto: Onto<'_>,
    chosen: Option<(&Chosen, usize)>,
) {
    // An expert has as many rows as there are, or, if that is fewer, twice as many as it would have if each had the same.
    let most = chosen.map_or(given.rows, |(chosen, _)| chosen.rows.min(2 * given.rows.div_ceil(chosen.count)));
    let rows = most.next_power_of_two().min(ROWS);
    let format = weight.format;
    let slots = chosen.map(|(chosen, _)| if given.rows < chosen.count { Slots::Choices } else { Slots::Experts });
    let shape = Shape {
        format,
        rows,
        taken: if rows <= 2 { 2 } else { 4 },
        ahead: (OF_LANE / (format.of_word() * rows)).clamp(1, if slots.is_some() { AHEAD_CHOSEN } else { AHEAD }),
        gate: match given.inside {
            Inside::Plain => None,
            Inside::Gated(activation) => Some(activation),
        },
        biased: given.bias.is_some(),
        added: onto.is_added(),
        two: matches!(onto, Onto::WriteTwo(..)),
        planes: gpu.limits().planes,
        slots,
    };
    let results = if shape.gate.is_some() { columns.count / 2 } else { columns.count };
    let (out, second) = onto.outputs();
    // Of experts that more rows chose than are multiplied at a time there may be few: what has none for its cubes ends at once.
    let chunks = chosen.map_or(given.rows, |(chosen, _)| chosen.rows).div_ceil(rows);
    let (down, deep) = match chosen {
        None => (chunks, 1),
        Some((chosen, _)) => (given.rows.min(chosen.count), chunks),
    };
    let read = weight.bytes() * columns.count as u64 / weight.outputs.max(1) as u64;
    // Who is chosen is not known here: as if those were as many as can be, and none by more rows than are multiplied at a time.
    gpu.counts().read(read * down as u64);
    launch!(
        gpu,
        CubeCount::Static(results.div_ceil(GROUPS * shape.results()) as u32, down as u32, deep as u32),
        UNITS,
        skinny_kernel,
        gpu.arg(given.x),
        gpu.arg(&weight.words),
        gpu.input(weight.scales.as_ref()),
        gpu.input(weight.steps.as_ref()),
        gpu.input(weight.table.as_ref()),
        gpu.input(given.bias),
        gpu.input(chosen.map(|(chosen, _)| &chosen.experts)),
        gpu.arg(out),
        gpu.output(second),
        given.first as u32,
        given.rows as u32,
        weight.inputs as u32,
        format.words_of_row(weight.inputs) as u32,
        format.scale_words_of_row(weight.inputs) as u32,
        columns.first as u32,
        columns.count as u32,
        results as u32,
        onto.first() as u32,
        onto.split(results) as u32,
        chosen.map_or(1, |(_, of_row)| of_row) as u32,
        shape,
    );
}

#[cube(launch_unchecked)]
fn skinny_kernel(
    x: &Array<f32>,
    words: &Array<u32>,
    scales: &Array<u32>,
    steps: &Array<f32>,
    table: &Array<f32>,
    bias: &Array<f32>,
    chosen: &Array<u32>,
    out: &mut Array<f32>,
    second: &mut Array<f32>,
    first: u32,
    rows: u32,
    inputs: u32,
    words_of_row: u32,
    scale_words: u32,
    first_column: u32,
    columns: u32,
    results: u32,
    first_out: u32,
    split: u32,
    of_row: u32,
    #[comptime] shape: Shape,
) {
    let of_word = comptime!(shape.format.of_word());
    let depth = comptime!(shape.depth());
    let of_group = comptime!(shape.results());
    let mut rows_of_x = SharedMemory::<f32>::new(comptime!(shape.rows * depth));
    let mut meanings = SharedMemory::<f32>::new(16usize);
    // As in attention: the compiler knows how large this is, and how often loops over it run.
    let unit = UNIT_POS_X as usize;
    let (group, lane) = (unit / LANES, unit % LANES);
    let (rows, inputs, results) = (rows as usize, inputs as usize, results as usize);
    let (words_of_row, scale_words) = (words_of_row as usize, scale_words as usize);
    let mut first_row = CUBE_POS_Y as usize * shape.rows;
    let mut own = SharedMemory::<u32>::new(comptime!(own_len(shape.slots, shape.rows)));
    if comptime!(shape.slots.is_some()) {
        collect(chosen, &mut own, rows, of_row as usize, shape.rows, UNITS, shape.slots);
        if !is_here(&own, rows, shape.rows, shape.slots) {
            terminate!();
        }
        first_row = 0usize;
    }
    let first_result = (CUBE_POS_X as usize * GROUPS + group) * of_group;
    if comptime!(shape.format == Format::Table) {
        if unit < 16 {
            meanings[unit] = table[unit];
        }
    }
    let column_of_first = first_column_of(&own, first_column, columns, shape.rows, shape.slots);
    let mut taken = Array::<usize>::new(shape.taken);
    #[unroll]
    for i in 0..shape.taken {
        // What is too much is computed again, and not written.
        let result = min(first_result + comptime!(i % of_group), results - 1);
        taken[i] = column_of_first + result + comptime!(i / of_group) * results;
    }
    let mut sums = Array::<f32>::new(comptime!(shape.sums()));
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        sums[i] = 0.0;
    }
    let mut loaded = Array::<u32>::new(comptime!(shape.taken * shape.ahead));
    for base in range_stepped(0, words_of_row, comptime!(LANES * shape.ahead)) {
        #[unroll]
        for ahead in 0..shape.ahead {
            let word = base + ahead * LANES + lane;
            #[unroll]
            for i in 0..shape.taken {
                let mut value = 0u32;
                if word < words_of_row {
                    value = words[taken[i] * words_of_row + word];
                }
                loaded[ahead * shape.taken + i] = value;
            }
        }
        sync_cube();
        for at in range_stepped(unit, comptime!(shape.rows * depth), UNITS) {
            let (row, within) = (at / depth, at % depth);
            let mut value = f32::new(0.0);
            let place = place_of(&own, first_row + row, shape.slots);
            if place < rows && base * of_word + within < inputs {
                let from = from_of(&own, row, first as usize + first_row, shape.rows, shape.slots);
                value = x[from * inputs + base * of_word + within];
            }
            let (word, part) = (within / of_word, within % of_word);
            rows_of_x[row * depth + (word / LANES * of_word + part) * LANES + word % LANES] = value;
        }
        sync_cube();
        #[unroll]
        for ahead in 0..shape.ahead {
            let word = base + ahead * LANES + lane;
            if word < words_of_row {
                let block = word * of_word / BLOCK;
                let mut values = Array::<f32>::new(comptime!(shape.taken * of_word));
                #[unroll]
                for i in 0..shape.taken {
                    let packed = loaded[ahead * shape.taken + i];
                    let scale = scale_of(scales, steps, taken[i], block, scale_words, shape.format);
                    let offset = offset_of(scales, steps, taken[i], block, scale_words, shape.format);
                    #[unroll]
                    for part in 0..of_word {
                        let value = weight_of_word(packed, &meanings, part, shape.format);
                        if comptime!(shape.format == Format::Offset) {
                            values[i * of_word + part] = value * scale + offset;
                        } else if comptime!(shape.format.is_scaled()) {
                            values[i * of_word + part] = value * scale;
                        } else {
                            values[i * of_word + part] = value;
                        }
                    }
                }
                #[unroll]
                for row in 0..shape.rows {
                    #[unroll]
                    for part in 0..of_word {
                        let value = rows_of_x[row * depth + (ahead * of_word + part) * LANES + lane];
                        #[unroll]
                        for i in 0..shape.taken {
                            sums[i * shape.rows + row] += values[i * of_word + part] * value;
                        }
                    }
                }
            }
        }
    }
    let totals = totals_of(&sums, shape);
    for at in range_stepped(unit, comptime!(GROUPS * of_group * shape.rows), UNITS) {
        // Neighbours write neighbours.
        let (row, result) = (at / comptime!(GROUPS * of_group), at % comptime!(GROUPS * of_group));
        let (of_group_at, group) = (result % of_group, result / of_group);
        let column = (CUBE_POS_X as usize * GROUPS + group) * of_group + of_group_at;
        let place = place_of(&own, first_row + row, shape.slots);
        if column < results && place < rows {
            let at = group * comptime!(shape.sums()) + of_group_at * shape.rows + row;
            let mut y = totals[at];
            let first_column = first_column_of(&own, first_column, columns, shape.rows, shape.slots);
            if comptime!(shape.biased) {
                y += bias[first_column + column];
            }
            if comptime!(shape.gate.is_some()) {
                let mut up = totals[at + comptime!(of_group * shape.rows)];
                if comptime!(shape.biased) {
                    up += bias[first_column + column + results];
                }
                y = gated(y, up, comptime!(shape.gate.unwrap_or(Activation::Relu)));
            }
            write(out, second, y, first_out as usize + place, column, split as usize, results, shape);
        }
    }
}

#[cube]
fn write(
    out: &mut Array<f32>,
    second: &mut Array<f32>,
    y: f32,
    row: usize,
    column: usize,
    split: usize,
    columns: usize,
    #[comptime] shape: Shape,
) {
    if comptime!(shape.two) {
        if column < split {
            out[row * split + column] = y;
        } else {
            second[row * (columns - split) + column - split] = y;
        }
    } else if comptime!(shape.added) {
        out[row * columns + column] += y;
    } else {
        out[row * columns + column] = y;
    }
}

/// The sums of each group's units, for all units to read.
#[cube]
fn totals_of(sums: &Array<f32>, #[comptime] shape: Shape) -> SharedMemory<f32> {
    let count = comptime!(shape.sums());
    let mut totals = SharedMemory::<f32>::new(comptime!(GROUPS * count));
    let unit = UNIT_POS_X as usize;
    let (group, lane) = (unit / LANES, unit % LANES);
    if comptime!(shape.planes) {
        #[unroll]
        for i in 0..count {
            let total = plane_sum(sums[i]);
            if lane == comptime!(i % LANES) {
                totals[group * count + i] = total;
            }
        }
    } else {
        let mut parts = SharedMemory::<f32>::new(comptime!(SUMS * UNITS));
        #[unroll]
        for step in 0..comptime!(count.div_ceil(SUMS)) {
            sync_cube();
            #[unroll]
            for i in 0..comptime!(SUMS.min(count - step * SUMS)) {
                parts[i * UNITS + unit] = sums[step * SUMS + i];
            }
            sync_cube();
            if unit < comptime!(GROUPS * SUMS.min(count - step * SUMS)) {
                let (of_group, i) = (unit % GROUPS, unit / GROUPS);
                let mut total = f32::new(0.0);
                for other in 0..LANES {
                    total += parts[i * UNITS + of_group * LANES + other];
                }
                totals[of_group * count + step * SUMS + i] = total;
            }
        }
    }
    sync_cube();
    totals
}
