//! Blocking and threads: which part of a product is computed when and by whom.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::PANEL;
use super::aligned::Aligned;
use super::isa::Isa;
use super::micro::{Left, Micro, Out, Right, Stored, Tile};
#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
use super::simd::Portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};

/// Depth of a block: its part of a panel (16 KiB) and of a strip of rows stay in the first-level cache.
const DEPTH: usize = 256;
/// Rows of a block: with [`DEPTH`] they stay in the second-level cache while the panels of a task pass.
const ROWS: usize = 48;
/// So many rows stay in the second-level cache whole.
const FEW_ROWS: usize = 24;
/// Bytes ahead of what a few rows read of a weight that are fetched: the processor's own foresight ends at pages, and with several
/// rows to multiply it does not get far by itself.
const AHEAD: usize = 2048;
/// Panels of a task.
pub(super) const TASK_PANELS: usize = 8;
/// Fewer or shorter rows of the left matrix are read as they lie. Others are copied into strips first, because long rows
/// a power of two apart push each other out of the caches.
const PACK_ROWS: usize = 24;
const PACK_LENGTH: usize = 512;
/// The largest block of any instruction set.
pub(super) const MOST_ROWS: usize = 12;
const MOST_PANELS: usize = 2;
/// Multiplications below which one thread alone is faster than several.
const ALONE: usize = 1 << 20;

/// Whether the weight is used as it is or transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
}

impl Direction {
    /// What is summed over, and the output's columns, of a product with a weight `[depth, width]`.
    pub(super) fn extents(self, depth: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Forward => (depth, width),
            Self::Backward => (width, depth),
        }
    }
}

/// A weight `[depth, width]` in panels, whatever its values are kept as.
pub(super) trait Panels: Sync {
    type Element: Stored;

    /// The values of all panels, if kernels multiply with them as they lie.
    fn plain(&self) -> Option<&[Self::Element]>;

    /// Writes `rows` of a panel, which begin at a multiple of [`PANEL`], to `out` in f32.
    fn widen(&self, panel: usize, rows: Range<usize>, out: &mut [f32]);

    /// `out[n][k]` becomes value `n` of row `first + k` of a panel, for `height` rows (at most [`PANEL`]); the rest becomes zero. `first` is a multiple
    /// of [`PANEL`].
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[allow(unsafe_code)]
    unsafe fn turn<S: Micro>(&self, panel: usize, first: usize, height: usize, out: &mut Tile);
}

/// Values that kernels widen as they load them.
pub(super) struct PlainPanels<'a, E> {
    pub(super) values: &'a [E],
    pub(super) depth: usize,
}

impl<E: Stored> Panels for PlainPanels<'_, E> {
    type Element = E;

    fn plain(&self) -> Option<&[E]> {
        Some(self.values)
    }

    fn widen(&self, _: usize, _: Range<usize>, _: &mut [f32]) {
        unreachable!("kernels multiply with them as they lie");
    }

    #[allow(unsafe_code)]
    unsafe fn turn<S: Micro>(&self, panel: usize, first: usize, height: usize, out: &mut Tile) {
        // SAFETY: by the contract of this function.
        unsafe { S::turn(&self.values[(panel * self.depth + first) * PANEL..], PANEL, height, out) };
    }
}

/// What a product is made of. The weight is `[depth, width]`.
pub(super) struct Operands<'a, W> {
    pub(super) weight: &'a W,
    pub(super) depth: usize,
    pub(super) width: usize,
    pub(super) left: &'a [f32],
    /// Initialised if `accumulate`.
    pub(super) out: &'a mut [MaybeUninit<f32>],
    pub(super) direction: Direction,
    pub(super) accumulate: bool,
}

/// Computes a product with an instruction set that the processor has, and writes all of its output. Sets that only speed up bf16 by bf16 compute as AVX-512.
///
/// # Panics
/// If the extents do not fit together.
pub(super) fn run<W: Panels>(isa: Isa, operands: Operands<'_, W>) {
    match isa {
        Isa::Portable => product::<Portable, W>(operands),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => product::<Neon, W>(operands),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => product::<Avx2, W>(operands),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => product::<Avx512, W>(operands),
    }
}

/// A product whose extents have been checked, with the output as a pointer that tasks share: each writes rows and columns
/// of its own.
struct Product<'a, W> {
    weight: &'a W,
    direction: Direction,
    /// Rows of the stored weight's panels.
    stored_depth: usize,
    left: &'a [f32],
    /// The left matrix in strips of `strip` rows, `[strips][inner][strip]`, if it was copied.
    strips: Option<Vec<f32>>,
    rows: usize,
    /// What is summed over, and the output's columns.
    inner: usize,
    columns: usize,
    out: SharedOut,
    accumulate: bool,
}

/// An output whose parts are written by several threads.
#[derive(Clone, Copy)]
pub(super) struct SharedOut(pub(super) *mut f32);

// SAFETY: tasks write disjoint parts of the output, which the caller has borrowed exclusively for the whole product.
#[allow(unsafe_code)]
unsafe impl Send for SharedOut {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for SharedOut {}

fn product<S: Micro, W: Panels>(operands: Operands<'_, W>) {
    let Operands { weight, depth, width, left, out, direction, accumulate } = operands;
    let (inner, columns) = direction.extents(depth, width);
    let rows = left.len() / inner.max(1);
    assert!(left.len() == rows * inner && out.len() == rows * columns, "rows do not fit together");
    let fits = weight.plain().is_none_or(|values| values.len() == width.div_ceil(PANEL) * depth * PANEL);
    assert!(fits, "the weight does not fit its extents");
    if rows == 0 || columns == 0 {
        return;
    }
    let strips = (rows >= PACK_ROWS && inner >= PACK_LENGTH).then(|| strips(left, inner, S::ROWS));
    let product = Product {
        weight,
        direction,
        stored_depth: depth,
        left,
        strips,
        rows,
        inner,
        columns,
        out: SharedOut(out.as_mut_ptr().cast()),
        accumulate,
    };
    let run = |rows, panels| product.compute::<S>(rows, panels);
    divide([rows, inner, columns], TASK_PANELS, S::ROWS, run);
}

/// Divides a product `[rows, inner] x [inner, columns]` among threads: calls `run` for ranges of rows, which begin at
/// multiples of `height`, and of `task` panels of columns, which together cover the output once.
pub(super) fn divide(
    [rows, inner, columns]: [usize; 3],
    task: usize,
    height: usize,
    run: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let panels = columns.div_ceil(PANEL);
    let groups = panels.div_ceil(task);
    let group = |number: usize| number * task..panels.min((number + 1) * task);
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * inner * columns < ALONE {
        (0..groups).for_each(|number| run(0..rows, group(number)));
        return;
    }
    // Wide outputs are divided by columns, so that each weight is read by one thread; narrow ones by rows besides.
    let parts = (4 * threads).div_ceil(groups).clamp(1, rows.div_ceil(height));
    let part_rows = rows.div_ceil(parts).next_multiple_of(height);
    let parts = rows.div_ceil(part_rows);
    (0..groups * parts).into_par_iter().for_each(|number| {
        let first = number % parts * part_rows;
        run(first..rows.min(first + part_rows), group(number / parts));
    });
}

/// Copies rows into strips of `height`, `[strip][inner][height]`; the last strip is as high as rows are left.
fn strips(left: &[f32], inner: usize, height: usize) -> Vec<f32> {
    let mut strips = vec![0.0; left.len()];
    strips.par_chunks_mut(height * inner).zip(left.par_chunks(height * inner)).for_each(|(strip, rows)| {
        let height = rows.len() / inner;
        for (row, values) in rows.chunks_exact(inner).enumerate() {
            for (to, &value) in strip[row..].iter_mut().step_by(height).zip(values) {
                *to = value;
            }
        }
    });
    strips
}

/// Columns that the micro-kernel takes at a time, and where their sum begins and how long it is.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    depth: usize,
    panel: usize,
    panels: usize,
}

impl<W: Panels> Product<'_, W> {
    fn compute<S: Micro>(&self, rows: Range<usize>, panels: Range<usize>) {
        let parts = |length: usize| {
            (0..self.inner).step_by(length.max(1)).map(move |first| first..self.inner.min(first + length))
        };
        match self.weight.plain().filter(|_| self.direction == Direction::Forward) {
            // Memory is what a few rows wait for, and it is quickest when a weight is read from front to back. Those of one
            // block stay in cache whole.
            Some(values) if rows.len() <= FEW_ROWS => {
                let length = if rows.len() <= S::ROWS { self.inner } else { DEPTH };
                for panel in panels.clone().step_by(S::PANELS) {
                    parts(length).for_each(|part| {
                        self.plain::<S>(values, &rows, part, panel..panels.end.min(panel + S::PANELS))
                    });
                }
            }
            Some(values) => parts(DEPTH).for_each(|part| self.plain::<S>(values, &rows, part, panels.clone())),
            None => {
                let stride = DEPTH.min(self.inner.next_multiple_of(PANEL)) * PANEL;
                let mut buffer = Aligned::new(panels.len() * stride);
                for part in parts(DEPTH) {
                    for (panel, to) in panels.clone().zip(buffer.chunks_exact_mut(stride)) {
                        match self.direction {
                            Direction::Forward => self.weight.widen(panel, part.clone(), to),
                            Direction::Backward => self.turn::<S>(to, panel, part.clone()),
                        }
                    }
                    let data = |panel: usize| buffer[(panel - panels.start) * stride..].as_ptr();
                    let right =
                        |panel| Right { data: data(panel), panel_stride: stride, depth_stride: PANEL, ahead: 0 };
                    self.blocks::<S, f32>(&rows, part, panels.clone(), right);
                }
            }
        }
    }

    /// Multiplies with a part of the weight as it lies.
    fn plain<S: Micro>(&self, values: &[W::Element], rows: &Range<usize>, part: Range<usize>, panels: Range<usize>) {
        let first = part.start;
        let data = |panel: usize| values[(panel * self.stored_depth + first) * PANEL..].as_ptr();
        let panel_stride = self.stored_depth * PANEL;
        // Many rows read a part from the cache again and again, and what follows it is not what is read next.
        let ahead = if rows.len() <= FEW_ROWS { AHEAD / size_of::<W::Element>() } else { 0 };
        let right = |panel| Right { data: data(panel), panel_stride, depth_stride: PANEL, ahead };
        self.blocks::<S, W::Element>(rows, part, panels, right);
    }

    /// Adds one part of the depth for all rows and panels given; `right` says where a panel's part is.
    #[allow(unsafe_code)]
    fn blocks<S: Micro, R: Stored>(
        &self,
        rows: &Range<usize>,
        part: Range<usize>,
        panels: Range<usize>,
        right: impl Fn(usize) -> Right<R>,
    ) {
        for first_row in rows.clone().step_by(ROWS) {
            let rows = first_row..rows.end.min(first_row + ROWS);
            for panel in panels.clone().step_by(S::PANELS) {
                let panels = S::PANELS.min(panels.end - panel);
                let block = Block { first: part.start, depth: part.len(), panel, panels };
                // SAFETY: `run` picked an instruction set that the processor has; extents were checked in `product`.
                unsafe { self.rows::<S, R>(rows.clone(), block, right(panel)) };
            }
        }
    }

    /// Fills a panel with the transposed weight's rows `part` in f32.
    #[allow(unsafe_code)]
    fn turn<S: Micro>(&self, turned: &mut [f32], panel: usize, part: Range<usize>) {
        let first = panel * PANEL;
        let height = PANEL.min(self.stored_depth - first);
        let tiles = turned.as_chunks_mut().0.as_chunks_mut().0;
        // A part begins at a multiple of DEPTH, which is one of PANEL.
        for (stored, out) in (part.start / PANEL..part.end.div_ceil(PANEL)).zip(tiles) {
            // SAFETY: `run` picked an instruction set that the processor has.
            unsafe { self.weight.turn::<S>(stored, first, height, out) };
        }
    }

    /// # Safety
    /// The processor has the instruction set, and `right` covers the block.
    #[allow(unsafe_code)]
    unsafe fn rows<S: Micro, R: Stored>(&self, rows: Range<usize>, block: Block, right: Right<R>) {
        let Block { first, depth, panel, panels } = block;
        let width = (panels * PANEL).min(self.columns - panel * PANEL);
        let accumulate = self.accumulate || first > 0;
        for row in rows.clone().step_by(S::ROWS) {
            let height = S::ROWS.min(rows.end - row);
            let left = match &self.strips {
                // A strip begins at a multiple of its height, as tasks and blocks do.
                Some(strips) => {
                    let height = S::ROWS.min(self.rows - row);
                    let data = strips[row * self.inner + first * height..].as_ptr();
                    Left { data, row_stride: 1, depth_stride: height }
                }
                None => {
                    let data = self.left[row * self.inner + first..].as_ptr();
                    Left { data, row_stride: self.inner, depth_stride: 1 }
                }
            };
            let at = self.out.0.wrapping_add(row * self.columns + panel * PANEL);
            let shape = [height, panels];
            // SAFETY: rows and columns of this block belong to this task alone and lie within the output.
            unsafe {
                if width == panels * PANEL {
                    let out = Out { data: at, row_stride: self.columns, scale: 1.0, accumulate };
                    S::multiply(shape, depth, left, right, out);
                } else {
                    self.ragged::<S, R>(shape, depth, (left, right), (at, width, accumulate));
                }
            }
        }
    }

    /// The last panel of an output whose width is no multiple of [`PANEL`], by way of a buffer.
    ///
    /// # Safety
    /// As [`Micro::multiply`], for `width` columns of `out`.
    #[allow(unsafe_code)]
    unsafe fn ragged<S: Micro, R: Stored>(
        &self,
        shape @ [height, panels]: [usize; 2],
        depth: usize,
        (left, right): (Left, Right<R>),
        (out, width, accumulate): (*mut f32, usize, bool),
    ) {
        let mut buffer = [0.0; MOST_ROWS * MOST_PANELS * PANEL];
        let row_stride = panels * PANEL;
        let part = Out { data: buffer.as_mut_ptr(), row_stride, scale: 1.0, accumulate: false };
        // SAFETY: the buffer has room for the largest block of any instruction set; the rest is this function's contract.
        unsafe {
            S::multiply(shape, depth, left, right, part);
            for (row, values) in buffer.chunks_exact(row_stride).take(height).enumerate() {
                for (column, &value) in values.iter().take(width).enumerate() {
                    let at = out.wrapping_add(row * self.columns + column);
                    *at = if accumulate { *at + value } else { value };
                }
            }
        }
    }
}
