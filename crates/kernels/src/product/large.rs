//! Large products in bf16, by whoever has kernels for tensor cores: what goes to them and what comes back.
//!
//! The rows are rounded to bf16, and weights that are kept in anything else become a matrix of bf16 for as long as the product takes.

use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Columns, Inside, Onto, Product, Weight};
use crate::cache::rounded_bits;
use crate::gpu::{Buffer, Gpu};
use crate::words::{BLOCK, offset_of, scale_of, weight_of_word};
use crate::{Format, launch};

/// Fewest rows that are worth it.
const ROWS: usize = 64;
const UNITS: usize = 256;
/// Bytes that a matrix's beginning is a multiple of.
const ALIGNED: usize = 256;

/// A product of two matrices of bf16: `out = x·Wᵀ`, or `x·W` if it is `back`.
#[derive(Debug)]
pub struct Halves {
    /// `[rows, depth]`
    pub x: Handle,
    /// `[columns, depth]`, or `[depth, columns]` if it is `back`.
    pub weight: Handle,
    /// `[rows, columns]` in f32.
    pub out: Handle,
    /// Rows, depth, columns.
    pub shape: [usize; 3],
    /// Whether with the weight as it lies.
    pub back: bool,
}

/// Who computes such products.
pub type Large<R> = fn(&ComputeClient<R>, &<R as Runtime>::Device, Halves) -> Result<(), String>;

/// Computes a product if it is large, not of f32 and somebody computes those; says whether it did.
pub(super) fn compute<R: Runtime>(
    gpu: &Gpu<R>,
    weight: &Weight,
    columns: Columns,
    given: Product<'_>,
    onto: Onto<'_>,
) -> bool {
    let even = weight.inputs.is_multiple_of(2) && columns.count.is_multiple_of(2);
    let Some(large) = gpu.large().filter(|_| given.rows >= ROWS && even && weight.format != Format::F32) else {
        return false;
    };
    debug_assert!(given.back || given.inside == Inside::Plain, "gates are for few rows");
    let (rows, inputs) = (given.rows, weight.inputs);
    let shape = if given.back { [rows, columns.count, inputs] } else { [rows, inputs, columns.count] };
    let [_, depth, results] = shape;
    let x = gpu.empty(rows * depth / 2);
    let cubes = gpu.cubes(x.len().div_ceil(UNITS));
    let (first, len) = ((given.first * depth) as u32, x.len() as u32);
    launch!(gpu, cubes, UNITS, narrow_kernel, gpu.arg(given.x), gpu.arg(&x), first, len);
    let halves = halves_of(gpu, weight, columns);
    let direct = matches!(onto, Onto::Write(_)) && given.bias.is_none();
    let (out, second) = onto.outputs();
    let product = if direct { out.clone() } else { gpu.empty(rows * results) };
    let asked = Halves { x: x.handle(), weight: halves.handle(), out: product.handle(), shape, back: given.back };
    if let Err(error) = large(gpu.client(), gpu.device(), asked) {
        gpu.without_large(&error);
        return false;
    }
    if !direct {
        let len = rows * results;
        let bias = given.bias;
        launch!(
            gpu,
            gpu.cubes(len.div_ceil(UNITS)),
            UNITS,
            finish_kernel,
            gpu.arg(&product),
            gpu.input(bias),
            gpu.arg(out),
            gpu.output(second),
            results as u32,
            columns.first as u32,
            onto.first() as u32,
            onto.split(results) as u32,
            len as u32,
            bias.is_some(),
            onto.is_added(),
            second.is_some(),
        );
    }
    true
}

/// The rows of a weight in bf16: where they are, or widened from what they are kept in.
fn halves_of<R: Runtime>(gpu: &Gpu<R>, weight: &Weight, columns: Columns) -> Buffer {
    let of_row = weight.inputs / 2;
    let first = columns.first * of_row;
    if weight.format == Format::Bf16 && (first * size_of::<u32>()).is_multiple_of(ALIGNED) {
        return weight.words.part(first, columns.count * of_row);
    }
    let halves = gpu.empty(columns.count * of_row);
    launch!(
        gpu,
        gpu.cubes(halves.len().div_ceil(UNITS)),
        UNITS,
        widen_kernel,
        gpu.arg(&weight.words),
        gpu.input(weight.scales.as_ref()),
        gpu.input(weight.steps.as_ref()),
        gpu.input(weight.table.as_ref()),
        gpu.arg(&halves),
        of_row as u32,
        weight.format.words_of_row(weight.inputs) as u32,
        weight.format.scale_words_of_row(weight.inputs) as u32,
        columns.first as u32,
        halves.len() as u32,
        weight.format,
    );
    halves
}

#[cube]
fn pair(low: f32, high: f32) -> u32 {
    (rounded_bits(low) >> 16u32) | (rounded_bits(high) & 0xffff_0000u32)
}

#[cube(launch_unchecked)]
fn narrow_kernel(x: &Array<f32>, out: &mut Array<u32>, first: u32, len: u32) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        let from = first as usize + 2 * at;
        out[at] = pair(x[from], x[from + 1]);
    }
}

#[cube(launch_unchecked)]
fn widen_kernel(
    words: &Array<u32>,
    scales: &Array<u32>,
    steps: &Array<f32>,
    table: &Array<f32>,
    out: &mut Array<u32>,
    of_row: u32,
    words_of_row: u32,
    scale_words: u32,
    first_row: u32,
    len: u32,
    #[comptime] format: Format,
) {
    let mut meanings = SharedMemory::<f32>::new(16usize);
    if comptime!(format == Format::Table) {
        if UNIT_POS < 16 {
            meanings[UNIT_POS as usize] = table[UNIT_POS as usize];
        }
        sync_cube();
    }
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        let of_row = of_row as usize;
        let (row, first) = (first_row as usize + at / of_row, at % of_row * 2);
        let of_word = comptime!(format.of_word());
        let scale = scale_of(scales, steps, row, first / BLOCK, scale_words as usize, format);
        let offset = offset_of(scales, steps, row, first / BLOCK, scale_words as usize, format);
        let word = words[row * words_of_row as usize + first / of_word];
        let part = first % of_word;
        // What is wanted is brought to the front.
        let front = word >> (part as u32 * comptime!(32 / of_word as u32));
        let low = weight_of_word(front, &meanings, 0usize, format) * scale + offset;
        let high = weight_of_word(front, &meanings, 1usize, format) * scale + offset;
        out[at] = pair(low, high);
    }
}

#[cube(launch_unchecked)]
fn finish_kernel(
    product: &Array<f32>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    second: &mut Array<f32>,
    results: u32,
    first_column: u32,
    first_row: u32,
    split: u32,
    len: u32,
    #[comptime] biased: bool,
    #[comptime] added: bool,
    #[comptime] two: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        let (results, split) = (results as usize, split as usize);
        let (row, column) = (first_row as usize + at / results, at % results);
        let mut value = product[at];
        if comptime!(biased) {
            value += bias[first_column as usize + column];
        }
        if comptime!(two) {
            if column < split {
                out[row * split + column] = value;
            } else {
                second[row * (results - split) + column - split] = value;
            }
        } else if comptime!(added) {
            out[row * results + column] += value;
        } else {
            out[row * results + column] = value;
        }
    }
}
