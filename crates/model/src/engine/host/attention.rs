//! See [`crate::engine::shapes`] for the mathematics.
//!
//! One task per segment and key head reads the packed rows in place. Queries are taken in blocks, so that keys which no
//! query of a block sees are skipped and scores stay in cache.

use rayon::prelude::*;

use super::matmul::{Matrix, product};
use super::simd::{softmax, sum2, vectorized};
use crate::engine::shapes::{Geometry, Heads, Segment};

/// Queries of a block.
const BLOCK: usize = 64;

/// One segment and key head, with the buffers that it reads.
struct Task<'a> {
    heads: Heads,
    segment: &'a Segment,
    visible: &'a [u32],
    key_head: usize,
    q: &'a [f32],
    kv: &'a [f32],
}

/// Queries `first..first + count` of a task's segment in one of its query heads, and the own keys that the last sees.
#[derive(Clone, Copy)]
struct Block {
    head: usize,
    first: usize,
    count: usize,
    own: usize,
}

impl<'a> Task<'a> {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let (queries, visible) = (self.segment.queries.clone(), self.visible);
        (0..self.heads.group()).flat_map(move |head| {
            queries.clone().step_by(BLOCK).map({
                let end = queries.end;
                move |first| {
                    let count = BLOCK.min(end - first);
                    let own = visible[first..first + count].iter().copied().max().unwrap_or_default();
                    Block { head, first, count, own: own as usize }
                }
            })
        })
    }

    /// The block's part of a matrix in the shape of the queries.
    fn of_queries(&self, matrix: &'a [f32], block: Block) -> Matrix<'a> {
        let (width, dim) = (self.heads.query_width(), self.heads.dim);
        let head = self.key_head * self.heads.group() + block.head;
        Matrix::new(&matrix[block.first * width + head * dim..], [block.count, dim], width)
    }

    /// Keys (`side` 0) or values (1) of `count` rows from `first`, of this key head.
    fn of_keys(&self, side: usize, first: usize, count: usize) -> Matrix<'a> {
        let width = 2 * self.heads.key_width();
        let column = side * self.heads.key_width() + self.key_head * self.heads.dim;
        Matrix::new(&self.kv[first * width + column..], [count, self.heads.dim], width)
    }

    /// The prefix's and the block's own keys or values.
    fn seen(&self, side: usize, block: Block) -> [Matrix<'a>; 2] {
        let Segment { keys, prefix, .. } = self.segment;
        [self.of_keys(side, 0, *prefix), self.of_keys(side, keys.start, block.own)]
    }

    /// Columns of a block's scores.
    fn columns(&self, block: Block) -> usize {
        self.segment.prefix + block.own
    }

    /// `left·rightᵀ` over all that the block may see, `[count, columns]`.
    fn against(&self, out: &mut [f32], left: Matrix<'_>, right: [Matrix<'_>; 2], block: Block) {
        let (prefix, columns) = (self.segment.prefix, self.columns(block));
        if prefix > 0 {
            product((out, columns), left, right[0].transposed(), 1.0, false);
        }
        product((&mut out[prefix..], columns), left, right[1].transposed(), 1.0, false);
    }

    /// The block's probabilities; zero where a query does not see a key.
    fn probabilities(&self, p: &mut [f32], block: Block) {
        self.against(p, self.of_queries(self.q, block), self.seen(0, block), block);
        let (prefix, columns, scale) = (self.segment.prefix, self.columns(block), self.heads.scale());
        let visible = &self.visible[block.first..block.first + block.count];
        vectorized(
            #[inline(always)]
            || {
                for (row, &visible) in p.chunks_exact_mut(columns).zip(visible) {
                    let (seen, hidden) = row.split_at_mut(prefix + visible as usize);
                    softmax(seen, scale);
                    hidden.fill(0.0);
                }
            },
        );
    }

    /// `out (+)= scale · weights·rows` with weights over prefix and own rows; `out` has rows of `stride`.
    fn combine(&self, out: (&mut [f32], usize), weights: &[f32], rows: [Matrix<'_>; 2], scale: f32, block: Block) {
        let (prefix, columns) = (self.segment.prefix, self.columns(block));
        let own = Matrix::new(&weights[prefix..], [block.count, block.own], columns);
        let (out, stride) = out;
        product((&mut *out, stride), own, rows[1], scale, false);
        if prefix > 0 {
            product((out, stride), Matrix::new(weights, [block.count, prefix], columns), rows[0], scale, true);
        }
    }
}

fn tasks<'a>(heads: Heads, geometry: &'a Geometry, q: &'a [f32], kv: &'a [f32]) -> Vec<Task<'a>> {
    let with_queries = geometry.segments.iter().filter(|segment| !segment.queries.is_empty());
    let visible = geometry.visible.as_slice();
    let of_segment =
        |segment| (0..heads.key_value).map(move |key_head| Task { heads, segment, visible, key_head, q, kv });
    with_queries.flat_map(of_segment).collect()
}

/// The output, `[active, query_heads·dim]`.
pub(super) fn forward(heads: Heads, geometry: &Geometry, q: &[f32], kv: &[f32]) -> Vec<f32> {
    let tasks = tasks(heads, geometry, q, kv);
    let width = heads.group() * heads.dim;
    let outputs: Vec<Vec<f32>> = tasks.par_iter().map(|task| forward_task(task, width)).collect();
    let mut output = vec![0.0; q.len()];
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
        p.resize(block.count * task.columns(block), 0.0);
        task.probabilities(&mut p, block);
        let start = (block.first - task.segment.queries.start) * width + block.head * task.heads.dim;
        task.combine((&mut output[start..], width), &p, task.seen(1, block), 1.0, block);
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
    (q, kv, d_output): (&[f32], &[f32], &[f32]),
    prefix_only: bool,
) -> (Vec<f32>, Vec<f32>) {
    let tasks = tasks(heads, geometry, q, kv);
    let run = |task: &Task<'_>| {
        let is_prefix = task.segment.prefix == 0 && task.segment.keys.start == 0;
        backward_task(task, d_output, prefix_only && !is_prefix)
    };
    let gradients: Vec<Gradients> = tasks.par_iter().map(run).collect();
    let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
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
        let columns = task.columns(block);
        p.resize(block.count * columns, 0.0);
        ds.resize(block.count * columns, 0.0);
        task.probabilities(&mut p, block);
        let (q, d_out) = (task.of_queries(task.q, block), task.of_queries(d_output, block));
        task.against(&mut ds, d_out, task.seen(1, block), block);
        vectorized(
            #[inline(always)]
            || {
                for (ds, p) in ds.chunks_exact_mut(columns).zip(p.chunks_exact(columns)) {
                    let along = sum2(ds, p, |d, p| d * p);
                    ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - along));
                }
            },
        );
        if !prefix_only {
            let start = (block.first - queries.start) * width + block.head * dim;
            let out = (&mut gradients.queries[start..], width);
            task.combine(out, &ds, task.seen(0, block), task.heads.scale(), block);
            collect(&mut gradients.own, &ds[*prefix..], [block.count, block.own], columns, (q, task.heads.scale()));
            collect(&mut gradients.own[dim..], &p[*prefix..], [block.count, block.own], columns, (d_out, 1.0));
        }
        if *prefix > 0 {
            collect(&mut gradients.prefix, &ds, [block.count, *prefix], columns, (q, task.heads.scale()));
            collect(&mut gradients.prefix[dim..], &p, [block.count, *prefix], columns, (d_out, 1.0));
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
