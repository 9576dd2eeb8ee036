//! Products of bf16 by bf16 with f32 sums, where the processor has them: AMX tiles, or AVX-512's dot products of pairs.
//!
//! Both multiply pairs of neighbours along the depth, so a panel is kept as `[depth / 2][PANEL][2]`, its depth filled up
//! with zeros to whole tiles of 32. The left matrix is rounded to bf16 (to nearest even) once a product. A backward turns tiles of
//! 16 x 16 on the way, as the other products do.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::PANEL;
use super::aligned::Aligned;
use super::driver::{Direction, SharedOut, divide};
use super::isa::Isa;
use crate::checkpoint::blocks::WeightColumns;
use crate::engine::host::simd::vectorized;

mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod left;
#[cfg(test)]
mod plain;
mod round;
mod turn;

use ahead::fetch;
#[cfg(target_arch = "x86_64")]
use amx::Amx;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512Bf16;
use left::Left;
#[cfg(test)]
pub(super) use plain::Plain;
pub(in crate::engine::host) use round::round_to_bf16;
pub(super) use turn::Tile;

/// Depth of a tile: depths are filled up to multiples of it.
const DEPTH: usize = 32;
/// Panels that a kernel multiplies with at a time.
const PANELS: usize = 2;
/// Panels of a task, and of one of few rows.
pub(super) const TASK_PANELS: usize = 16;
const FEW_ROWS_PANELS: usize = 8;
/// Rows of a task that are computed at a time. Their sums (768 KiB with [`TASK_PANELS`]) and a part of their values stay in the second-level cache.
const ROWS: usize = 768;
/// Depth of a part, if rows are many: that of a pair of panels (16 KiB) stays in the first-level cache while strips of rows pass.
const PART: usize = 256;
/// So few rows wait for the weights, which are read from front to back.
const FEW_ROWS: usize = 64;

/// A weight `[depth, width]` in panels of pairs.
#[derive(Debug)]
pub(super) struct PairMatrix {
    depth: usize,
    width: usize,
    panels: Aligned<u16>,
}

/// A weight `[depth, width]` that is read as panels of pairs.
pub(super) trait PairPanels: Sync {
    /// `[depth, width]`
    fn shape(&self) -> [usize; 2];

    /// Rows `part` of a panel, its depth filled up with zeros to a multiple of [`DEPTH`], if that is how it lies.
    fn plain(&self, panel: usize, part: Range<usize>) -> Option<&[u16]>;

    /// Writes the same to `out`.
    fn widen(&self, panel: usize, part: Range<usize>, out: &mut [u16]);

    /// Calls `each` with tiles of a panel: number `n` begins with row `n · PANEL`.
    fn tiles(&self, panel: usize, tiles: Range<usize>, each: impl FnMut(&Tile));
}

impl PairPanels for PairMatrix {
    fn shape(&self) -> [usize; 2] {
        [self.depth, self.width]
    }

    fn plain(&self, panel: usize, part: Range<usize>) -> Option<&[u16]> {
        Some(&self.panel(panel)[part.start * PANEL..part.end * PANEL])
    }

    fn widen(&self, panel: usize, part: Range<usize>, out: &mut [u16]) {
        out.copy_from_slice(&self.panel(panel)[part.start * PANEL..part.end * PANEL]);
    }

    fn tiles(&self, panel: usize, tiles: Range<usize>, each: impl FnMut(&Tile)) {
        self.panel(panel).as_chunks().0[tiles].iter().for_each(each);
    }
}

/// So few rows are quicker without tiles, which would be mostly empty; with more of them the products of pairs wait for themselves and not for memory.
#[cfg(target_arch = "x86_64")]
const EMPTY_ROWS: usize = 4;

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
        if isa == Isa::Amx && left.len() > EMPTY_ROWS * inner {
            product::<Amx>(weight, direction, left, out, accumulate);
        } else {
            product::<Avx512Bf16>(weight, direction, left, out, accumulate);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (weight, direction, left, out, accumulate);
        unreachable!("{isa:?} does not multiply bf16");
    }
}

/// What multiplies a strip of rows with [`PANELS`] panels.
pub(super) trait Kernel {
    /// Rows of a strip, at most.
    const ROWS: usize;

    /// Rows of all strips of a matrix of `rows` rows; the last strip is filled up.
    fn height(rows: usize) -> usize;

    /// Readies the thread for calls of [`Self::multiply`], and cleans up behind `calls`.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn session(calls: impl FnOnce());

    /// Adds to `sums`, `[PANELS][ROWS][PANEL]`, or overwrites them.
    ///
    /// # Safety
    /// Within [`Self::session`]; see [`Block`].
    unsafe fn multiply(block: Block, sums: &mut [f32]);
}

/// A strip of rows and the panels that it is multiplied with.
pub(super) struct Block {
    /// Rows that count.
    rows: usize,
    /// `[depth / DEPTH][height][DEPTH]`
    left: *const u16,
    /// See [`Kernel::height`].
    height: usize,
    /// A multiple of [`DEPTH`].
    depth: usize,
    /// `depth` rows each.
    panels: [*const u16; PANELS],
    /// Whether sums are added to.
    onto: bool,
}

impl PairMatrix {
    fn panel(&self, number: usize) -> &[u16] {
        let length = self.depth.next_multiple_of(DEPTH) * PANEL;
        &self.panels[number * length..][..length]
    }

    /// As [`super::FrozenMatrix::from_columns`].
    pub(super) fn from_columns([depth, width]: [usize; 2], from: &impl WeightColumns) -> Self {
        let panel_len = depth.next_multiple_of(DEPTH) * PANEL;
        let mut panels = Aligned::new(width.div_ceil(PANEL) * panel_len);
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
    let height = K::height(rows);
    let product = Product {
        weight,
        direction,
        left: Left::new(left, inner, height),
        height,
        depth: inner.next_multiple_of(DEPTH),
        columns,
        out: SharedOut(out.as_mut_ptr().cast()),
        accumulate,
    };
    let run = |rows, panels| product.task::<K>(rows, panels);
    let panels = if rows <= FEW_ROWS { FEW_ROWS_PANELS } else { TASK_PANELS };
    divide([rows, inner, columns], panels, K::ROWS, run);
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

struct Product<'a, W> {
    weight: &'a W,
    direction: Direction,
    left: Left,
    /// Rows of its strips.
    height: usize,
    depth: usize,
    columns: usize,
    out: SharedOut,
    accumulate: bool,
}

impl<W: PairPanels> Product<'_, W> {
    #[allow(unsafe_code)]
    fn task<K: Kernel>(&self, rows: Range<usize>, panels: Range<usize>) {
        let (mut buffer, mut sums) = (Aligned::new(0), Aligned::new(0));
        let calls = || {
            // As many for each time: the last rows would not be worth the reading of the weights.
            let height = rows.len().div_ceil(rows.len().div_ceil(ROWS)).next_multiple_of(K::ROWS);
            for first in rows.clone().step_by(height) {
                let rows = first..rows.end.min(first + height);
                self.rows::<K>(rows, panels.clone(), &mut buffer, &mut sums);
            }
        };
        // SAFETY: the layout was chosen for a processor that has the instructions.
        unsafe { K::session(calls) }
    }

    #[allow(unsafe_code)]
    fn rows<K: Kernel>(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        buffer: &mut Aligned<u16>,
        sums: &mut Aligned<f32>,
    ) {
        let of_block = PANELS * K::ROWS * PANEL;
        let strips = rows.len().div_ceil(K::ROWS);
        let sums = sums.at_least(panels.len().div_ceil(PANELS) * strips * of_block);
        let plain = |panel, part| match self.direction {
            Direction::Forward => self.weight.plain(panel, part),
            Direction::Backward => None,
        };
        let few = rows.len() <= FEW_ROWS;
        let lies_plain = plain(0, 0..0).is_some();
        let length = if few && lies_plain { self.depth } else { PART };
        for first in (0..self.depth).step_by(length) {
            let part = first..self.depth.min(first + length);
            let of_panel = part.len() * PANEL;
            if !lies_plain {
                self.fill(panels.clone(), part.clone(), buffer.at_least(panels.len() * of_panel));
            }
            let right = |panel| match plain(panel, part.clone()) {
                Some(values) => values.as_ptr(),
                None => buffer[(panel - panels.start) * of_panel..].as_ptr(),
            };
            for (panel, sums) in panels.clone().step_by(PANELS).zip(sums.chunks_exact_mut(strips * of_block)) {
                // Of the last panel's, if it is alone, twice the same.
                let right = [right(panel), right((panel + 1).min(panels.end - 1))];
                // The panels that come next: of this part, or the first ones of the next.
                let (panel_then, part_then) = match panel + PANELS {
                    next if next < panels.end => (next, part.clone()),
                    _ => (panels.start, part.end..self.depth.min(part.end + length)),
                };
                for (n, (row, sums)) in rows.clone().step_by(K::ROWS).zip(sums.chunks_exact_mut(of_block)).enumerate() {
                    let strip = self.left.strip(row, first);
                    if !few {
                        let of_strip = part.len() * self.height;
                        let strip_then = strip.get(of_strip..2 * of_strip).unwrap_or_default();
                        fetch(strip_then, (panel - panels.start) / PANELS, panels.len().div_ceil(PANELS));
                        for panel in panel_then..panels.end.min(panel_then + PANELS) {
                            fetch(plain(panel, part_then.clone()).unwrap_or_default(), n, strips);
                        }
                    }
                    let block = Block {
                        rows: K::ROWS.min(rows.end - row),
                        left: strip.as_ptr(),
                        height: self.height,
                        depth: part.len(),
                        panels: right,
                        onto: first > 0,
                    };
                    // SAFETY: within a session; strips are whole, panels padded to the depth.
                    unsafe { K::multiply(block, sums) };
                }
            }
        }
        self.store::<K>(sums, rows, panels);
    }

    /// Writes rows `part` of panels of the right matrix, one panel behind the other.
    fn fill(&self, panels: Range<usize>, part: Range<usize>, to: &mut [u16]) {
        let of_panel = part.len() * PANEL;
        if self.direction == Direction::Forward {
            panels
                .zip(to.chunks_exact_mut(of_panel))
                .for_each(|(panel, to)| self.weight.widen(panel, part.clone(), to));
            return;
        }
        // The tiles of a stored panel lie side by side, and are tiles of all of these panels.
        let [_, width] = self.weight.shape();
        let stored = part.start / PANEL..(part.end / PANEL).min(width.div_ceil(PANEL));
        for (at, panel) in stored.clone().enumerate() {
            let mut to = to.chunks_exact_mut(of_panel);
            self.weight.tiles(panel, panels.clone(), |tile| {
                if let Some(to) = to.next() {
                    turn::turn(tile, &mut to.as_chunks_mut().0[at]);
                }
            });
        }
        // Behind the weight's last column there is nothing.
        to.chunks_exact_mut(of_panel).for_each(|to| to[stored.len() * PANEL * PANEL..].fill(0));
    }

    /// Writes or adds sums, `[pair of panels][strip][PANELS][ROWS][PANEL]`, to their places.
    #[allow(unsafe_code)]
    fn store<K: Kernel>(&self, sums: &[f32], rows: Range<usize>, panels: Range<usize>) {
        let strips = rows.len().div_ceil(K::ROWS);
        for (n, row) in rows.enumerate() {
            let (strip, row_of_strip) = (n / K::ROWS, n % K::ROWS);
            for panel in panels.clone() {
                let (pair, second) = ((panel - panels.start) / PANELS, (panel - panels.start) % PANELS);
                let at = ((pair * strips + strip) * PANELS + second) * K::ROWS + row_of_strip;
                let width = PANEL.min(self.columns - panel * PANEL);
                let sums = &sums[at * PANEL..][..width];
                let to = self.out.0.wrapping_add(row * self.columns + panel * PANEL);
                // SAFETY: these rows and columns lie within the output, belong to this task alone, and are initialised where they
                // are added to.
                unsafe {
                    if self.accumulate {
                        let out = std::slice::from_raw_parts_mut(to, width);
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        to.copy_from_nonoverlapping(sums.as_ptr(), width);
                    }
                }
            }
        }
    }
}
