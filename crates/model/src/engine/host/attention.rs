//! See [`crate::engine::shapes`] for the mathematics.
//!
//! One task per segment and key head reads the packed rows in place. Queries are taken in blocks, so that keys which no
//! query of a block sees are skipped and scores stay in cache.

use std::ops::Range;

use rayon::prelude::*;

use super::matmul::{Matrix, product};
use super::scores::{self, Scores};
use super::simd::vectorized;
use crate::engine::shapes::{Geometry, Heads, Segment};

/// Queries of a block.
const BLOCK: usize = 64;

/// One segment and key head, with the buffers that it reads.
struct Task<'a> {
    given: &'a Given<'a>,
    heads: Heads,
    segment: &'a Segment,
    key_head: usize,
}

/// What all tasks read.
struct Given<'a> {
    visible: &'a [Range<u32>],
    q: &'a [f32],
    kv: &'a [f32],
    sinks: Option<&'a [f32]>,
    /// See [`Heads::biases`].
    biases: Vec<f32>,
}

/// Queries `first..first + count` of a task's segment in one of its query heads, and what any of them sees.
#[derive(Clone)]
struct Block {
    head: usize,
    first: usize,
    count: usize,
    /// Rows of the prefix.
    prefix: Range<usize>,
    /// Rows of the segment's own keys. They follow what is seen of the prefix without a gap.
    own: Range<usize>,
}

impl Block {
    /// Columns of the block's scores.
    fn columns(&self) -> usize {
        self.prefix.len() + self.own.len()
    }
}

impl<'a> Task<'a> {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let Segment { queries, prefix, .. } = self.segment;
        let (queries, prefix, visible) = (queries.clone(), *prefix, self.given.visible);
        (0..self.heads.group()).flat_map(move |head| {
            queries.clone().step_by(BLOCK).map({
                let end = queries.end;
                move |first| {
                    let count = BLOCK.min(end - first);
                    let rows = &visible[first..first + count];
                    let from = rows.iter().map(|seen| seen.start as usize).min().unwrap_or_default();
                    let to = rows.iter().map(|seen| seen.end as usize).max().unwrap_or_default();
                    let own = from.max(prefix) - prefix..to.max(prefix) - prefix;
                    Block { head, first, count, prefix: from.min(prefix)..to.min(prefix), own }
                }
            })
        })
    }

    /// The block's part of a matrix in the shape of the queries.
    fn of_queries(&self, matrix: &'a [f32], block: &Block) -> Matrix<'a> {
        let (width, dim) = (self.heads.query_width(), self.heads.dim);
        let head = self.query_head(block);
        Matrix::new(&matrix[block.first * width + head * dim..], [block.count, dim], width)
    }

    fn query_head(&self, block: &Block) -> usize {
        self.key_head * self.heads.group() + block.head
    }

    /// Keys (`side` 0) or values (1) of these rows, of this key head.
    fn of_keys(&self, side: usize, rows: Range<usize>) -> Matrix<'a> {
        let width = 2 * self.heads.key_width();
        let column = side * self.heads.key_width() + self.key_head * self.heads.dim;
        // Of no rows there may be no first one.
        let from = (rows.start * width + column).min(self.given.kv.len());
        Matrix::new(&self.given.kv[from..], [rows.len(), self.heads.dim], width)
    }

    /// The keys or values of prefix and segment that the block sees.
    fn seen(&self, side: usize, block: &Block) -> [Matrix<'a>; 2] {
        let first = self.segment.keys.start;
        let own = first + block.own.start..first + block.own.end;
        [self.of_keys(side, block.prefix.clone()), self.of_keys(side, own)]
    }

    /// `left·rightᵀ` over all that the block may see, `[count, columns]`.
    fn against(&self, out: &mut [f32], left: Matrix<'_>, right: [Matrix<'_>; 2], block: &Block) {
        let (prefix, columns) = (block.prefix.len(), block.columns());
        if prefix > 0 {
            product((out, columns), left, right[0].transposed(), 1.0, false);
        }
        product((&mut out[prefix..], columns), left, right[1].transposed(), 1.0, false);
    }

    /// The block's probabilities, zero where a query does not see a key, and the slopes of its scores' soft cap, if they have one.
    fn probabilities(&self, p: &mut [f32], block: &Block) -> Vec<f32> {
        self.against(p, self.of_queries(self.given.q, block), self.seen(0, block), block);
        let Given { biases, sinks, visible, .. } = self.given;
        let scores = Scores::of(self.heads, self.query_head(block), biases, *sinks);
        let slopes = scores.slopes(p);
        // The position of the first column.
        let origin = if block.prefix.is_empty() { self.segment.prefix + block.own.start } else { block.prefix.start };
        let visible = &visible[block.first..block.first + block.count];
        vectorized(
            #[inline(always)]
            || {
                for (row, visible) in p.chunks_exact_mut(block.columns()).zip(visible) {
                    let (from, to) = (visible.start as usize, visible.end as usize);
                    row[..from - origin].fill(0.0);
                    scores.probabilities(&mut row[from - origin..to - origin], from);
                    row[to - origin..].fill(0.0);
                }
            },
        );
        slopes
    }

    /// `out (+)= scale · weights·rows` with weights over prefix and own rows; `out` has rows of `stride`.
    fn combine(&self, out: (&mut [f32], usize), weights: &[f32], rows: [Matrix<'_>; 2], scale: f32, block: &Block) {
        let (prefix, columns) = (block.prefix.len(), block.columns());
        let own = Matrix::new(&weights[prefix..], [block.count, block.own.len()], columns);
        let (out, stride) = out;
        product((&mut *out, stride), own, rows[1], scale, false);
        if prefix > 0 {
            product((out, stride), Matrix::new(weights, [block.count, prefix], columns), rows[0], scale, true);
        }
    }
}

/// Queries, keys beside values, and sinks.
type Inputs<'a> = (&'a [f32], &'a [f32], Option<&'a [f32]>);

fn given<'a>(heads: Heads, geometry: &'a Geometry, (q, kv, sinks): Inputs<'a>) -> Given<'a> {
    let seen = geometry.visible.iter().map(|seen| seen.end).max().unwrap_or_default();
    Given { visible: &geometry.visible, q, kv, sinks, biases: heads.biases(seen as usize) }
}

fn tasks<'a>(heads: Heads, geometry: &'a Geometry, given: &'a Given<'a>) -> Vec<Task<'a>> {
    let with_queries = geometry.segments.iter().filter(|segment| !segment.queries.is_empty());
    let of_segment = |segment| (0..heads.key_value).map(move |key_head| Task { given, heads, segment, key_head });
    with_queries.flat_map(of_segment).collect()
}

/// The output, `[active, query_heads·dim]`.
pub(super) fn forward(heads: Heads, geometry: &Geometry, inputs: Inputs<'_>) -> Vec<f32> {
    let given = given(heads, geometry, inputs);
    let tasks = tasks(heads, geometry, &given);
    let width = heads.group() * heads.dim;
    let outputs: Vec<Vec<f32>> = tasks.par_iter().map(|task| forward_task(task, width)).collect();
    let mut output = vec![0.0; given.q.len()];
    for (task, part) in tasks.iter().zip(&outputs) {
        scatter(&mut output, part, heads.query_width(), task.segment.queries.start, task.key_head * width, width);
    }
    output
}

/// `[queries, group·dim]` of the task's segment.
fn forward_task(task: &Task<'_>, width: usize) -> Vec<f32> {
    let mut output = vec![0.0; task.segment.queries.len() * width];
    let mut p = Vec::new();
    for block in task.blocks() {
        p.resize(block.count * block.columns(), 0.0);
        task.probabilities(&mut p, &block);
        let start = (block.first - task.segment.queries.start) * width + block.head * task.heads.dim;
        task.combine((&mut output[start..], width), &p, task.seen(1, &block), 1.0, &block);
    }
    output
}

/// A task's gradients: `[queries, group·dim]`, and keys beside values, `[rows, 2·dim]`, of prefix and own rows.
struct Gradients {
    queries: Vec<f32>,
    prefix: Vec<f32>,
    own: Vec<f32>,
}

/// Gradients of `q` and `kv` in their shapes; see [`crate::engine::Engine::attend_back`].
pub(super) fn backward(
    heads: Heads,
    geometry: &Geometry,
    inputs: Inputs<'_>,
    d_output: &[f32],
    prefix_only: bool,
) -> (Vec<f32>, Vec<f32>) {
    let given = given(heads, geometry, inputs);
    let tasks = tasks(heads, geometry, &given);
    let run = |task: &Task<'_>| {
        let is_prefix = task.segment.prefix == 0 && task.segment.keys.start == 0;
        backward_task(task, d_output, prefix_only && !is_prefix)
    };
    let gradients: Vec<Gradients> = tasks.par_iter().map(run).collect();
    let (mut dq, mut dkv) = (vec![0.0; given.q.len()], vec![0.0; given.kv.len()]);
    let (width, dim) = (heads.group() * heads.dim, heads.dim);
    for (task, part) in tasks.iter().zip(&gradients) {
        let Segment { queries, keys, .. } = task.segment;
        scatter(&mut dq, &part.queries, heads.query_width(), queries.start, task.key_head * width, width);
        for side in [0, 1] {
            let column = side * heads.key_width() + task.key_head * dim;
            for (rows, first) in [(&part.prefix, 0), (&part.own, keys.start)] {
                add_side(&mut dkv, rows, 2 * heads.key_width(), first, column, (side, dim));
            }
        }
    }
    (dq, dkv)
}

fn backward_task(task: &Task<'_>, d_output: &[f32], prefix_only: bool) -> Gradients {
    let Segment { queries, keys, prefix } = task.segment;
    let dim = task.heads.dim;
    let width = task.heads.group() * dim;
    let own_queries = if prefix_only { 0 } else { queries.len() };
    let own_keys = if prefix_only { 0 } else { keys.len() };
    let mut gradients = Gradients {
        queries: vec![0.0; own_queries * width],
        prefix: vec![0.0; prefix * 2 * dim],
        own: vec![0.0; own_keys * 2 * dim],
    };
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for block in task.blocks() {
        let columns = block.columns();
        p.resize(block.count * columns, 0.0);
        ds.resize(block.count * columns, 0.0);
        let slopes = task.probabilities(&mut p, &block);
        let (q, d_out) = (task.of_queries(task.given.q, &block), task.of_queries(d_output, &block));
        task.against(&mut ds, d_out, task.seen(1, &block), &block);
        scores::back(&mut ds, &p, columns, &slopes);
        let scale = task.heads.scale;
        if !prefix_only {
            let start = (block.first - queries.start) * width + block.head * dim;
            let out = (&mut gradients.queries[start..], width);
            task.combine(out, &ds, task.seen(0, &block), scale, &block);
            let (first, seen) = (block.prefix.len(), block.own.len());
            let own = &mut gradients.own[block.own.start * 2 * dim..];
            collect(own, &ds[first..], [block.count, seen], columns, (q, scale));
            collect(&mut own[dim..], &p[first..], [block.count, seen], columns, (d_out, 1.0));
        }
        if !block.prefix.is_empty() {
            let of_prefix = &mut gradients.prefix[block.prefix.start * 2 * dim..];
            collect(of_prefix, &ds, [block.count, block.prefix.len()], columns, (q, scale));
            collect(&mut of_prefix[dim..], &p, [block.count, block.prefix.len()], columns, (d_out, 1.0));
        }
    }
    gradients
}

/// `out += scale · weightsᵀ·rows`: `[keys, dim]` within rows of `2·dim`.
fn collect(out: &mut [f32], weights: &[f32], shape: [usize; 2], columns: usize, (rows, scale): (Matrix<'_>, f32)) {
    let stride = 2 * rows.columns();
    product((out, stride), Matrix::new(weights, shape, columns).transposed(), rows, scale, true);
}

/// Copies `part`, rows of `width`, to rows from `first` and columns from `column` of a matrix with rows of `stride`.
fn scatter(out: &mut [f32], part: &[f32], stride: usize, first: usize, column: usize, width: usize) {
    let rows = out.chunks_exact_mut(stride).skip(first);
    rows.zip(part.chunks_exact(width)).for_each(|(row, part)| row[column..column + width].copy_from_slice(part));
}

/// Adds one side of `part`, rows of keys beside values, to rows from `first` and columns from `column`.
fn add_side(out: &mut [f32], part: &[f32], stride: usize, first: usize, column: usize, (side, dim): (usize, usize)) {
    let rows = out.chunks_exact_mut(stride).skip(first);
    for (row, part) in rows.zip(part.chunks_exact(2 * dim)) {
        let gradient = &part[side * dim..(side + 1) * dim];
        row[column..column + dim].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
    }
}
