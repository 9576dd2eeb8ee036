//! Products of bf16 by bf16 with f32 sums, where the processor has them: AMX tiles, or AVX-512's dot products of pairs.
//!
//! Both multiply pairs of neighbours along the depth, so a panel is kept as `[depth / 2][PANEL][2]`, its depth filled up
//! with zeros to whole tiles of 32. The left matrix is rounded to bf16 (to nearest even) once a product. A backward turns tiles of
//! 16 x 16 on the way, as the other products do.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::PANEL;
use super::driver::{Direction, SharedOut, divide};
use super::isa::Isa;
use crate::checkpoint::blocks::WeightColumns;
use crate::engine::host::simd::vectorized;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod plain;
mod turn;

#[cfg(target_arch = "x86_64")]
use amx::Amx;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512Bf16;
#[cfg(test)]
pub(super) use plain::Plain;
pub(super) use turn::Tile;

/// Depth of a tile: depths are filled up to multiples of it.
const DEPTH: usize = 32;
/// Rows and columns of the largest block that a kernel computes at a time.
const MOST_ROWS: usize = 32;
const BLOCK_COLUMNS: usize = 2 * PANEL;
/// Rows of the left matrix that are so many values apart, or a multiple, fall into the same places of a cache.
const CONFLICT: usize = 1024;
/// Values of the left matrix that stay in the second-level cache while the panels of a task pass.
const KEPT: usize = 1 << 19;
/// The sums of a block, rows of [`BLOCK_COLUMNS`].
type Sums = [f32; MOST_ROWS * BLOCK_COLUMNS];

/// A weight `[depth, width]` in panels of pairs.
#[derive(Debug)]
pub(super) struct PairMatrix {
    depth: usize,
    width: usize,
    panels: Vec<u16>,
}

/// A weight `[depth, width]` that is read as panels of pairs.
pub(super) trait PairPanels: Sync {
    /// `[depth, width]`
    fn shape(&self) -> [usize; 2];

    /// Rows `part` of a panel, its depth filled up with zeros to a multiple of [`DEPTH`]; `buffer` is as long, for those that do not lie like that.
    fn panel<'a>(&'a self, number: usize, part: Range<usize>, buffer: &'a mut [u16]) -> &'a [u16];

    /// Calls `each` with a tile of each of these panels: that of rows `number · PANEL` and on.
    fn tiles(&self, number: usize, panels: Range<usize>, each: impl FnMut(&Tile));
}

impl PairPanels for PairMatrix {
    fn shape(&self) -> [usize; 2] {
        [self.depth, self.width]
    }

    fn panel<'a>(&'a self, number: usize, part: Range<usize>, _: &'a mut [u16]) -> &'a [u16] {
        let length = self.depth.next_multiple_of(DEPTH) * PANEL;
        &self.panels[number * length..][..length][part.start * PANEL..part.end * PANEL]
    }

    fn tiles(&self, number: usize, panels: Range<usize>, mut each: impl FnMut(&Tile)) {
        let length = self.depth.next_multiple_of(DEPTH) * PANEL;
        for panel in self.panels[panels.start * length..panels.end * length].chunks_exact(length) {
            let (tiles, _) = panel.as_chunks();
            each(&tiles[number]);
        }
    }
}

/// Rows below which tiles would be mostly empty.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 12;

/// Computes a product with an instruction set for which [`Isa::multiplies_bf16`] holds.
pub(super) fn run(
    isa: Isa,
    weight: &impl PairPanels,
    direction: Direction,
    left: &[f32],
    out: &mut [MaybeUninit<f32>],
    accumulate: bool,
) {
    #[cfg(target_arch = "x86_64")]
    {
        let [depth, width] = weight.shape();
        let (inner, _) = direction.extents(depth, width);
        if isa == Isa::Amx && left.len() > FEW_ROWS * inner {
            product::<Amx>(weight, direction, left, out, accumulate);
        } else {
            product::<Avx512Bf16>(weight, direction, left, out, accumulate);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{isa:?} does not multiply bf16");
}

/// What multiplies a block.
pub(super) trait Kernel {
    /// Rows that one call takes.
    const ROWS: usize;

    /// Readies the thread for calls of [`Self::multiply`], and cleans up behind `calls`.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn session(calls: impl FnOnce());

    /// Sums for `rows` rows (at most [`Self::ROWS`]) of `left`, `left_stride` values apart, and two panels.
    ///
    /// # Safety
    /// Within [`Self::session`]; `left` has [`Self::ROWS`] rows of `depth` values, each panel `depth` rows; `depth` is a
    /// multiple of [`DEPTH`].
    unsafe fn multiply(rows: usize, depth: usize, left: (*const u16, usize), panels: [*const u16; 2], sums: &mut Sums);
}

impl PairMatrix {
    /// As [`super::FrozenMatrix::from_columns`].
    pub(super) fn from_columns([depth, width]: [usize; 2], from: &impl WeightColumns) -> Self {
        let panel_len = depth.next_multiple_of(DEPTH) * PANEL;
        let mut panels = vec![0; width.div_ceil(PANEL) * panel_len];
        panels.par_chunks_mut(panel_len.max(1)).enumerate().for_each_init(
            || vec![0.0; PANEL * depth],
            |columns, (panel, pairs)| {
                let first = panel * PANEL;
                for (n, values) in columns.chunks_exact_mut(depth).take(width - first).enumerate() {
                    from.column(first + n, values);
                }
                vectorized(
                    #[inline(always)]
                    || interleave(&columns[..depth * PANEL.min(width - first)], depth, pairs),
                );
            },
        );
        Self { depth, width, panels }
    }
}

/// Writes all of `out`; adds to it if `accumulate`, and then it must be initialised.
pub(super) fn product<K: Kernel>(
    weight: &impl PairPanels,
    direction: Direction,
    left: &[f32],
    out: &mut [MaybeUninit<f32>],
    accumulate: bool,
) {
    let [depth, width] = weight.shape();
    let (inner, columns) = direction.extents(depth, width);
    let rows = left.len() / inner.max(1);
    assert!(left.len() == rows * inner && out.len() == rows * columns, "rows do not fit together");
    if rows == 0 || columns == 0 {
        return;
    }
    let depth = inner.next_multiple_of(DEPTH);
    // Rows a power of two apart push each other out of the caches.
    let stride = depth + if depth.is_multiple_of(CONFLICT) { DEPTH } else { 0 };
    let left = round(left, inner, stride, rows.next_multiple_of(K::ROWS));
    let product = Product {
        weight,
        direction,
        left,
        stride,
        depth,
        columns,
        out: SharedOut(out.as_mut_ptr().cast()),
        accumulate,
    };
    let run = |rows, panels| product.task::<K>(rows, panels);
    divide([rows, inner, columns], K::ROWS, run);
}

/// Lays columns of `depth` values out as pairs, in parts that stay in the first-level cache.
#[inline(always)]
fn interleave(columns: &[f32], depth: usize, pairs: &mut [u16]) {
    /// Values of a column at a time.
    const PART: usize = 256;
    for (part, pairs) in pairs.chunks_mut(PART * PANEL).enumerate() {
        for (n, column) in columns.chunks_exact(depth).enumerate() {
            let values = &column[depth.min(part * PART)..depth.min((part + 1) * PART)];
            let (whole, rest) = values.as_chunks::<2>();
            let (rows, _) = pairs.as_chunks_mut::<{ 2 * PANEL }>();
            for (row, [a, b]) in rows.iter_mut().zip(whole) {
                row[2 * n] = round_to_bf16(*a);
                row[2 * n + 1] = round_to_bf16(*b);
            }
            if let (Some(row), Some(last)) = (rows.get_mut(whole.len()), rest.first()) {
                row[2 * n] = round_to_bf16(*last);
            }
        }
    }
}

/// The left matrix in bf16, `[padded rows, padded depth]`, zero where there is nothing.
fn round(left: &[f32], inner: usize, depth: usize, rows: usize) -> Vec<u16> {
    let mut rounded = vec![0; rows * depth];
    rounded.par_chunks_mut(depth).zip(left.par_chunks(inner)).for_each(|(to, row)| {
        vectorized(
            #[inline(always)]
            || to.iter_mut().zip(row).for_each(|(to, &value)| *to = round_to_bf16(value)),
        );
    });
    rounded
}

/// The bits of the nearest bf16, of two the even one, without branches. NaN stays NaN.
#[inline(always)]
pub(in crate::engine::host) fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let kept = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { kept } else { rounded }) as u16
}

struct Product<'a, W> {
    weight: &'a W,
    direction: Direction,
    left: Vec<u16>,
    /// From one of its rows to the next.
    stride: usize,
    depth: usize,
    columns: usize,
    out: SharedOut,
    accumulate: bool,
}

impl<W: PairPanels> Product<'_, W> {
    #[allow(unsafe_code)]
    fn task<K: Kernel>(&self, rows: Range<usize>, panels: Range<usize>) {
        let mut buffer = Vec::new();
        let mut sums = [0.0; MOST_ROWS * BLOCK_COLUMNS];
        // Few rows stay there whole, and panels are read from front to back.
        let length = (KEPT / rows.len().max(1)).next_multiple_of(DEPTH).clamp(8 * DEPTH, self.depth.max(8 * DEPTH));
        let calls = || {
            for first in (0..self.depth).step_by(length) {
                let part = first..self.depth.min(first + length);
                for panel in panels.clone().step_by(2) {
                    let right = self.right(panel, part.clone(), &mut buffer);
                    for row in rows.clone().step_by(K::ROWS) {
                        let height = K::ROWS.min(rows.end - row);
                        let left = (self.left[row * self.stride + first..].as_ptr(), self.stride);
                        // SAFETY: within a session; the left matrix is padded to whole blocks of rows, panels to the depth.
                        unsafe { K::multiply(height, part.len(), left, right, &mut sums) };
                        self.store(&sums, row..row + height, panel, self.accumulate || first > 0);
                    }
                }
            }
        };
        // SAFETY: the layout was chosen for a processor that has the instructions.
        unsafe { K::session(calls) }
    }

    /// Rows `part` of panels `first` and `first + 1` of the right matrix; of the first twice if there is no second.
    fn right(&self, first: usize, part: Range<usize>, buffer: &mut Vec<u16>) -> [*const u16; 2] {
        let last = self.columns.div_ceil(PANEL) - 1;
        let length = part.len() * PANEL;
        buffer.resize(2 * length, 0);
        let (a, b) = buffer.split_at_mut(length);
        let panel = |number: usize, to| match self.direction {
            Direction::Forward => self.weight.panel(number, part.clone(), to).as_ptr(),
            Direction::Backward => self.turn(number, part.clone(), to),
        };
        [panel(first, a), panel(last.min(first + 1), b)]
    }

    /// Rows `part` of panel `number` of the transposed weight.
    fn turn(&self, number: usize, part: Range<usize>, to: &mut [u16]) -> *const u16 {
        let [_, width] = self.weight.shape();
        let panels = part.start / PANEL..(part.end / PANEL).min(width.div_ceil(PANEL));
        let (tiles, _) = to.as_chunks_mut();
        // Behind the weight's last column there is nothing.
        tiles[panels.len()..].iter_mut().for_each(|tile| tile.fill(0));
        let mut tiles = tiles.iter_mut();
        self.weight.tiles(number, panels, |tile| {
            if let Some(to) = tiles.next() {
                turn::turn(tile, to);
            }
        });
        to.as_ptr()
    }

    #[allow(unsafe_code)]
    fn store(&self, sums: &Sums, rows: Range<usize>, panel: usize, accumulate: bool) {
        let first = panel * PANEL;
        let width = BLOCK_COLUMNS.min(self.columns - first);
        for (row, sums) in rows.zip(sums.chunks_exact(BLOCK_COLUMNS)) {
            let at = self.out.0.wrapping_add(row * self.columns + first);
            // SAFETY: these rows and columns lie within the output, belong to this task alone, and are initialised where they
            // are added to.
            unsafe {
                if accumulate {
                    let out = std::slice::from_raw_parts_mut(at, width);
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                } else {
                    at.copy_from_nonoverlapping(sums.as_ptr(), width);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let values = (0..=u16::MAX).flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| (high, low)));
        for (high, low) in values {
            let value = f32::from_bits(u32::from(high) << 16 | low);
            let (got, expected) = (bf16::from_bits(round_to_bf16(value)), bf16::from_f32(value));
            assert!(got == expected || got.is_nan() && expected.is_nan(), "{value}: {got}");
        }
    }
}
