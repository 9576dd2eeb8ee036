//! Where keys and values come from: rows of a matrix, or pages of a cache.

use cubecl::prelude::*;

use super::{Four, Shape};
use crate::cache::{Kept, PAGE, quad_of_words};

/// What position `position` of a sequence has for key head `head`, four values of it; zeros behind the head's end. `side` is 0 for its key, 1 for its value.
#[cube]
pub(super) fn kept_four(
    words: &Array<u32>,
    scales: &Array<f32>,
    pages: &Array<u32>,
    prefix: usize,
    keys: usize,
    position: usize,
    quad: usize,
    head: usize,
    #[comptime] side: usize,
    #[comptime] shape: Shape,
) -> Four {
    if comptime!(shape.kept.is_some()) {
        let page = pages[prefix + position / PAGE] as usize;
        let slot = ((page * 2 + side) * shape.key_heads + head) * PAGE + position % PAGE;
        quad_of_words(words, scales, slot, quad, shape.dim, comptime!(shape.kept.unwrap_or(Kept::F32)))
    } else {
        let mut row = position;
        if position >= prefix {
            row = keys + position - prefix;
        }
        let width = comptime!(shape.key_heads * shape.dim);
        row_four(words, row * comptime!(2 * width) + side * width + head * shape.dim, quad, shape.dim)
    }
}

/// Four values of a head of a row.
#[cube]
pub(super) fn row_four(words: &Array<u32>, at: usize, quad: usize, #[comptime] dim: usize) -> Four {
    let mut four = Four::new(0.0);
    #[unroll]
    for i in 0..4usize {
        if comptime!(dim.is_multiple_of(4)) {
            four[i] = f32::reinterpret(words[at + quad * 4 + i]);
        } else if quad * 4 + i < dim {
            four[i] = f32::reinterpret(words[at + quad * 4 + i]);
        }
    }
    four
}
