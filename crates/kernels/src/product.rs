//! Products with frozen weights, read as they are packed.

use cubecl::prelude::*;

use crate::Format;
use crate::activation::Activation;
use crate::gpu::{Buffer, Gpu};
use crate::mixture::Chosen;

mod large;
mod skinny;
mod slots;
mod tiled;

pub use large::{Halves, Large};

/// From so many rows on, a product is cut into tiles; fewer are multiplied by each weight as it is read.
pub const MANY_ROWS: usize = 33;

/// A frozen weight, `outputs` rows of `inputs` values.
#[derive(Debug, Clone)]
pub struct Weight {
    /// How it is packed.
    pub format: Format,
    /// Values of a row.
    pub inputs: usize,
    /// Rows.
    pub outputs: usize,
    /// [`Format::words_of_row`] for each row.
    pub words: Buffer,
    /// [`Format::scale_words_of_row`] for each row.
    pub scales: Option<Buffer>,
    /// With [`Format::Offset`], the steps of each row's scales and of its offsets.
    pub steps: Option<Buffer>,
    /// With [`Format::Table`], what the sixteen numbers stand for.
    pub table: Option<Buffer>,
}

impl Weight {
    /// Memory for one, of whatever was there before, without a table.
    pub fn empty<R: Runtime>(gpu: &Gpu<R>, format: Format, [inputs, outputs]: [usize; 2]) -> Self {
        Self {
            format,
            inputs,
            outputs,
            words: gpu.empty(outputs * format.words_of_row(inputs)),
            scales: format.is_scaled().then(|| gpu.empty(outputs * format.scale_words_of_row(inputs))),
            steps: (format == Format::Offset).then(|| gpu.empty(2 * outputs)),
            table: None,
        }
    }

    /// Bytes that it occupies.
    pub fn bytes(&self) -> u64 {
        let others = [&self.scales, &self.steps, &self.table];
        let words = self.words.len() + others.into_iter().flatten().map(Buffer::len).sum::<usize>();
        (words * size_of::<u32>()) as u64
    }
}

/// Which of a weight's rows are multiplied with, and what becomes of each result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The first row of the weight.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// What happens to results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// Nothing.
    Plain,
    /// The first half are gates of the second half, as in an MLP.
    Gated(Activation),
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub enum Onto<'a> {
    /// They are written.
    Write(&'a Buffer),
    /// They are written, the first so many columns to one matrix, and the rest to another.
    WriteTwo(&'a Buffer, usize, &'a Buffer),
    /// They are added to the rows from this one on.
    Add(&'a Buffer, usize),
}

/// A product.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// Rows that are multiplied.
    pub x: &'a Buffer,
    /// The first of them.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// Whether with the weight's columns and not with its rows: `x` then has a value for each row of the weight.
    pub back: bool,
    /// What is added to each result, a value for each column of it.
    pub bias: Option<&'a Buffer>,
    /// What happens to results, if it is not a product back.
    pub inside: Inside,
}

/// Multiplies rows by a weight: `x·Wᵀ`, or `x·W` if it is a product back. (The weight has a row for each output.)
pub fn product<R: Runtime>(gpu: &Gpu<R>, weight: &Weight, columns: Columns, product: Product<'_>, onto: Onto<'_>) {
    if product.rows == 0 {
        return;
    }
    if large::compute(gpu, weight, columns, product, onto) {
        return;
    }
    if product.back || product.rows >= MANY_ROWS {
        tiled::launch(gpu, weight, columns, product, onto);
    } else {
        skinny::launch(gpu, weight, columns, product, onto);
    }
}

/// Multiplies by experts that rows have chosen: `out` has a row for each choice. The weight has `count` experts one behind the other, and so has the bias; `per_choice` says whether `x`
/// has a row for each choice, or one for each row that chose.
pub fn product_of_chosen<R: Runtime>(
    gpu: &Gpu<R>,
    weight: &Weight,
    chosen: &Chosen,
    (x, per_choice): (&Buffer, bool),
    (bias, inside): (Option<&Buffer>, Inside),
    out: &Buffer,
) {
    let choices = chosen.rows * chosen.used;
    if choices == 0 {
        return;
    }
    let columns = Columns { first: 0, count: weight.outputs / chosen.count };
    let product = Product { x, first: 0, rows: choices, back: false, bias, inside };
    let of_row = if per_choice { 1 } else { chosen.used };
    skinny::launch_chosen(gpu, weight, columns, product, Onto::Write(out), (chosen, of_row));
}

impl<'a> Onto<'a> {
    /// The matrix, and the second one.
    fn outputs(self) -> (&'a Buffer, Option<&'a Buffer>) {
        match self {
            Self::Write(out) | Self::Add(out, _) => (out, None),
            Self::WriteTwo(out, _, second) => (out, Some(second)),
        }
    }

    /// How many columns the first matrix has, of so many.
    fn split(self, columns: usize) -> usize {
        match self {
            Self::WriteTwo(_, split, _) => split,
            _ => columns,
        }
    }

    fn is_added(self) -> bool {
        matches!(self, Self::Add(..))
    }

    /// The first row that is written.
    fn first(self) -> usize {
        match self {
            Self::Add(_, first) => first,
            _ => 0,
        }
    }
}
