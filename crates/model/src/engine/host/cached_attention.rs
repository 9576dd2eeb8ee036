//! Attention of new rows over the pages of a cache (see [`super::cache`]).
//!
//! A query at position `p` sees positions of its sequence up to `p`, all of them or those of its window. One task per sequence and key head; the heads of a group
//! that share its keys are the rows of one product where there is one new row, else they follow one another.

use std::ops::Range;

use rayon::prelude::*;

use super::kept::{Kept, Part};
use super::matmul::{Matrix, product};
use super::scores::Scores;
use super::simd::vectorized;
use crate::engine::shapes::{Grown, Heads, PAGE_TOKENS};

/// Queries of a block, so that scores stay in cache.
const BLOCK: usize = 64;
/// Columns of the kernels: scores are computed for whole panels, what is behind the visible ones is overwritten.
const PANEL: usize = 16;
/// Multiplications below which one thread alone is faster than several.
const ALONE: usize = 1 << 17;

struct Task<'a, E> {
    heads: Heads,
    sequence: &'a Grown,
    /// One block's part of each page of the sequence.
    pages: &'a [Part<'a, E>],
    key_head: usize,
    q: &'a [f32],
    sinks: Option<&'a [f32]>,
    /// See [`Heads::biases`].
    biases: &'a [f32],
}

/// A few queries of one sequence, rows `stride` apart, in as many query heads as `heads` says from `head` on, with what each sees.
struct Queries<'a> {
    rows: &'a [f32],
    stride: usize,
    visible: &'a [Range<usize>],
    /// Query head of each.
    heads: Vec<usize>,
}

/// The output, `[queries, query_heads·dim]`, of all sequences; `pages` has one block's part of the pages of each.
pub(super) fn forward<'a, E: Kept>(
    heads: Heads,
    sequences: &'a [Grown],
    pages: &'a [Vec<Part<'a, E>>],
    (q, sinks): (&'a [f32], Option<&'a [f32]>),
) -> Vec<f32> {
    let last = sequences.iter().flat_map(|sequence| &sequence.visible).map(|seen| seen.end).max();
    let biases = heads.biases(last.unwrap_or_default());
    let biases = biases.as_slice();
    let with_queries = sequences.iter().zip(pages).filter(|(sequence, _)| !sequence.queries.is_empty());
    let of_sequence = |(sequence, pages): (&'a Grown, &'a Vec<Part<'a, E>>)| {
        (0..heads.key_value).map(move |key_head| Task { heads, sequence, pages, key_head, q, sinks, biases })
    };
    let tasks: Vec<Task<'_, E>> = with_queries.flat_map(of_sequence).collect();
    let seen: usize = sequences.iter().flat_map(|sequence| &sequence.visible).map(Range::len).sum();
    let outputs: Vec<Vec<f32>> = if 2 * seen * heads.query_width() < ALONE {
        tasks.iter().map(Task::run).collect()
    } else {
        tasks.par_iter().map(Task::run).collect()
    };
    let (mut output, width, group) = (vec![0.0; q.len()], heads.query_width(), heads.group() * heads.dim);
    for (task, part) in tasks.iter().zip(&outputs) {
        let rows = output.chunks_exact_mut(width).skip(task.sequence.queries.start);
        let column = task.key_head * group;
        rows.zip(part.chunks_exact(group)).for_each(|(row, part)| row[column..column + group].copy_from_slice(part));
    }
    output
}

impl<E: Kept> Task<'_, E> {
    /// `[queries, group·dim]`.
    fn run(&self) -> Vec<f32> {
        let Heads { dim, .. } = self.heads;
        let (group, rows) = (self.heads.group(), self.sequence.queries.len());
        let mut output = vec![0.0; rows * group * dim];
        let mut scores = Vec::new();
        let first_head = self.key_head * group;
        if rows == 1 {
            // One new row: its heads are rows one after the other, in queries and output.
            let visible = vec![self.sequence.visible[0].clone(); group];
            let heads = (first_head..first_head + group).collect();
            let queries = Queries { rows: self.queries(0, 0), stride: dim, visible: &visible, heads };
            self.block(&queries, (&mut output, dim), &mut scores);
            return output;
        }
        for head in 0..group {
            for first in (0..rows).step_by(BLOCK) {
                let visible = &self.sequence.visible[first..rows.min(first + BLOCK)];
                let heads = vec![first_head + head; visible.len()];
                let stride = self.heads.query_width();
                let queries = Queries { rows: self.queries(first, head), stride, visible, heads };
                let at = first * group * dim + head * dim;
                self.block(&queries, (&mut output[at..], group * dim), &mut scores);
            }
        }
        output
    }

    /// The queries from row `first` of the sequence and head `head` of the group on.
    fn queries(&self, first: usize, head: usize) -> &[f32] {
        let head = self.key_head * self.heads.group() + head;
        &self.q[(self.sequence.queries.start + first) * self.heads.query_width() + head * self.heads.dim..]
    }

    /// Attention of a few queries.
    fn block(
        &self,
        Queries { rows, stride, visible, heads }: &Queries<'_>,
        (output, output_stride): (&mut [f32], usize),
        scores: &mut Vec<f32>,
    ) {
        let (dim, count) = (self.heads.dim, visible.len());
        let to = visible.iter().map(|seen| seen.end).max().unwrap_or_default();
        // Whole pages, from the first one that any of the queries sees.
        let from = visible.iter().map(|seen| seen.start).min().unwrap_or_default() / PAGE_TOKENS * PAGE_TOKENS;
        let columns = (to - from).next_multiple_of(PANEL);
        scores.resize(count * columns, 0.0);
        let left = Matrix::new(rows, [count, dim], *stride);
        for (first, page) in self.pages(from, to) {
            let width = PAGE_TOKENS.min(columns - (first - from));
            let keys = Matrix::new(page.values, [dim, width], PAGE_TOKENS);
            product((&mut scores[first - from..], columns), left, keys, 1.0, false);
            if E::SCALED {
                scale((&mut scores[first - from..], columns), &page.scales[..width]);
            }
        }
        vectorized(
            #[inline(always)]
            || {
                for ((row, seen), head) in scores.chunks_exact_mut(columns).zip(*visible).zip(heads) {
                    let (start, end) = (seen.start - from, seen.end - from);
                    row[..start].fill(0.0);
                    let of_head = Scores::of(self.heads, *head, self.biases, self.sinks);
                    of_head.probabilities(&mut row[start..end], seen.start);
                    row[end..].fill(0.0);
                }
            },
        );
        for (first, page) in self.pages(from, to) {
            let height = PAGE_TOKENS.min(to - first);
            if E::SCALED {
                scale((&mut scores[first - from..], columns), &page.scales[PAGE_TOKENS..][..height]);
            }
            let weights = Matrix::new(&scores[first - from..], [count, height], columns);
            let values = Matrix::new(&page.values[dim * PAGE_TOKENS..], [height, dim], dim);
            product((&mut *output, output_stride), weights, values, 1.0, first > from);
        }
    }

    /// First position of every page from position `from` on with one of the first `to` positions, and what it has of the head.
    fn pages(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, Part<'_, E>)> {
        let pages = self.pages.iter().enumerate().take(to.div_ceil(PAGE_TOKENS)).skip(from / PAGE_TOKENS);
        pages.map(move |(number, page)| (number * PAGE_TOKENS, page.heads(self.key_head, 1, self.heads.dim)))
    }
}

/// Multiplies rows, `stride` apart, by a scale for each of their first columns.
fn scale((rows, stride): (&mut [f32], usize), scales: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for row in rows.chunks_mut(stride) {
                row.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
            }
        },
    );
}
