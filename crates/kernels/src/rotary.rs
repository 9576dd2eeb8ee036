//! Rotary position embedding (Su et al. 2021) of whole matrices.

use cubecl::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::launch;

const UNITS: usize = 256;

/// Which values are rotated: of each row the first `heads` heads, of each of those the first `2·pairs` values.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// Number of rows.
    pub rows: usize,
    /// Values of a row.
    pub stride: usize,
    /// Heads that are rotated.
    pub heads: usize,
    /// Values of a head.
    pub dim: usize,
    /// Pairs of a head.
    pub pairs: usize,
    /// Whether neighbours are pairs, and not the halves of what is rotated.
    pub interleaved: bool,
    /// Whether to turn back.
    pub back: bool,
}

/// Rotates `x` in place by `cos` and `sin`, `[rows, pairs]`.
pub fn rotate<R: Runtime>(gpu: &Gpu<R>, rotation: Rotation, (cos, sin): (&Buffer, &Buffer), x: &Buffer) {
    let Rotation { rows, stride, heads, dim, pairs, interleaved, back } = rotation;
    let count = rows * heads * pairs;
    if count == 0 {
        return;
    }
    launch!(
        gpu,
        gpu.cubes(count.div_ceil(UNITS)),
        UNITS,
        rotate_kernel,
        gpu.arg(cos),
        gpu.arg(sin),
        gpu.arg(x),
        count as u32,
        stride as u32,
        heads as u32,
        dim as u32,
        pairs as u32,
        interleaved,
        back,
    );
}

#[cube(launch_unchecked)]
fn rotate_kernel(
    cos: &Array<f32>,
    sin: &Array<f32>,
    x: &mut Array<f32>,
    count: u32,
    stride: u32,
    heads: u32,
    dim: u32,
    pairs: u32,
    #[comptime] interleaved: bool,
    #[comptime] back: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < count as usize {
        let (heads, pairs) = (heads as usize, pairs as usize);
        let pair = at % pairs;
        let head = at / pairs % heads;
        let row = at / pairs / heads;
        let angle = row * pairs + pair;
        let head = row * stride as usize + head * dim as usize;
        let (mut first, mut second) = (head + pair, head + pair + pairs);
        if comptime!(interleaved) {
            first = head + 2 * pair;
            second = first + 1;
        }
        let (a, b) = (x[first], x[second]);
        let cos = cos[angle];
        let mut sin = sin[angle];
        if comptime!(back) {
            sin = -sin;
        }
        x[first] = a * cos - b * sin;
        x[second] = b * cos + a * sin;
    }
}
