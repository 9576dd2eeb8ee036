//! Products of a few rows as integers: sums of 32 products of eight bits are exact, and only they are scaled and added in f32.
//!
//! Beside weights of eight bits a single row has two parts of eight bits each, so that what is lost of a token is what the weights have lost already.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use super::left::RoundedRows;
use super::{BlockMatrix, GROUP, LINE, Line, STEPS};
use crate::checkpoint::blocks::{BLOCK, Bits, Table};
use crate::engine::host::matmul::PANEL;
use crate::engine::host::matmul::driver::{SharedOut, TASK_PANELS, divide};
use crate::engine::host::matmul::isa::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
use plain::Plain;
#[cfg(target_arch = "x86_64")]
use vnni::{Avx512Vnni, AvxVnni};

/// Bytes ahead of what is read of a weight that are fetched.
const AHEAD: usize = 2048;

/// Instructions that integer products are compiled for, from the least to the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Dots {
    /// Plain Rust, for every processor.
    Plain,
    /// NEON's products of bytes, or its dot products of four.
    #[cfg(target_arch = "aarch64")]
    Neon { dot: bool },
    /// Products of pairs of bytes, with AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Dot products of four bytes, eight at a time.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// Dot products of four bytes, sixteen at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Dots {
    /// What this processor has, the best last.
    pub(in super::super) fn available() -> Vec<Self> {
        let mut sets = vec![Self::Plain];
        #[cfg(target_arch = "aarch64")]
        sets.extend(neon::available());
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                sets.push(Self::Avx2);
                if has!("avxvnni") {
                    sets.push(Self::AvxVnni);
                }
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni") {
                    sets.push(Self::Avx512Vnni);
                }
            }
        }
        sets
    }

    /// The best that this processor has. One that does not compute what it should (an emulator's) is passed over.
    pub(in super::super) fn best() -> Self {
        static BEST: OnceLock<Dots> = OnceLock::new();
        *BEST.get_or_init(|| {
            let right = Self::available().into_iter().rev().find(|dots| dots.computes_rightly());
            right.unwrap_or(Self::Plain)
        })
    }

    /// Rows up to which integer products are quicker than widening the weight for the kernels of `isa`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(in super::super) fn most_rows(self, isa: Isa) -> usize {
        match self {
            Self::Plain => 4,
            #[cfg(target_arch = "aarch64")]
            Self::Neon { dot } => 16 << u32::from(dot),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 16,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni | Self::Avx512Vnni if isa == Isa::Amx => 16,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni | Self::Avx512Vnni => 32,
        }
    }

    /// Tries a small product of both kinds of weights with whole and ragged parts. All of its sums are exact.
    fn computes_rightly(self) -> bool {
        const ROWS: usize = 13;
        const DEPTH: usize = 72;
        const WIDTH: usize = 50;
        const STEPS: Table = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];
        // One value of each block has the most that eight bits hold, so that the scale is 1, and an end of the steps.
        let value = |n: usize, k: usize, most: i32| match k % BLOCK {
            5 => -most as f32,
            _ => ((3 * k + 5 * n) % 15) as f32 - 7.0,
        };
        [(Bits::Eight, 127), (Bits::Four(STEPS), 8)].into_iter().all(|(bits, most)| {
            let matrix = BlockMatrix::from_columns([DEPTH, WIDTH], bits, &|n: usize, column: &mut [f32]| {
                column.iter_mut().enumerate().for_each(|(k, v)| *v = value(n, k, most));
            });
            let left: Vec<f32> = (0..ROWS * DEPTH).map(|i| value(i / DEPTH + 1, i % DEPTH, 127)).collect();
            [1, ROWS].into_iter().all(|rows| {
                let mut out = vec![MaybeUninit::new(0.0); rows * WIDTH];
                self.product(&matrix, &left[..rows * DEPTH], &mut out, true);
                out.iter().enumerate().all(|(i, sum)| {
                    let (row, n) = (i / WIDTH, i % WIDTH);
                    let term = |k| left[row * DEPTH + k] * value(n, k, most);
                    // SAFETY: all of the output was initialised.
                    let sum = unsafe { sum.assume_init() };
                    sum == (0..DEPTH).map(term).sum::<f32>()
                })
            })
        })
    }

    /// `left · weight`, written to all of `out`, or added to it, and then it must be initialised.
    ///
    /// # Panics
    /// If the extents do not fit together.
    pub(in super::super) fn product(
        self,
        weight: &BlockMatrix,
        left: &[f32],
        out: &mut [MaybeUninit<f32>],
        accumulate: bool,
    ) {
        match self {
            Self::Plain => product::<Plain, 4>(weight, left, out, accumulate),
            #[cfg(target_arch = "aarch64")]
            Self::Neon { dot: false } => product::<Neon<false>, 4>(weight, left, out, accumulate),
            #[cfg(target_arch = "aarch64")]
            Self::Neon { dot: true } => product::<Neon<true>, 4>(weight, left, out, accumulate),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => product::<Avx2, 2>(weight, left, out, accumulate),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => product::<AvxVnni, 2>(weight, left, out, accumulate),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => product::<Avx512Vnni, 1>(weight, left, out, accumulate),
        }
    }
}

/// The operations of one instruction set on the bytes of [`Integers::COLUMNS`] columns, four neighbours of the depth each.
///
/// # Safety
/// Callers run on a processor that has the set, inside of a function compiled for it; pointers are valid for what is read or written.
pub(super) trait Integers: Copy + Send + Sync + 'static {
    /// Weights, as [`Self::dot`] takes them.
    type Bytes: Copy;
    /// Sums of [`Self::COLUMNS`] columns.
    type Ints: Copy;
    type Floats: Copy;
    /// A table, ready to look numbers up in it.
    type Table: Copy;
    const COLUMNS: usize;
    /// Rows that one call of [`Self::multiply`] takes.
    const ROWS: usize;

    /// Weights of eight bits.
    unsafe fn eight(line: *const u8) -> Self::Bytes;
    unsafe fn table(values: &Table) -> Self::Table;
    /// Weights of four bits: of the lower halves of the bytes, and of the upper ones.
    unsafe fn four(line: *const u8, table: Self::Table) -> [Self::Bytes; 2];
    /// What [`Self::dot`] is added to in the end; `sum` is that of all quants of the block.
    unsafe fn start(sum: *const i32) -> Self::Ints;
    /// Adds the products of the weights with four quants.
    unsafe fn dot(sums: Self::Ints, weights: Self::Bytes, quants: *const i8) -> Self::Ints;
    unsafe fn zero() -> Self::Floats;
    unsafe fn load(values: *const f32) -> Self::Floats;
    unsafe fn load_f16(values: *const u16) -> Self::Floats;
    /// Scales and offsets from the numbers of their steps; the steps of offsets lie [`PANEL`] behind those of scales.
    unsafe fn affine(numbers: *const u16, steps: *const f32) -> [Self::Floats; 2];
    unsafe fn store(at: *mut f32, values: Self::Floats);
    /// `sums + ints · scales · scale`
    unsafe fn add_scaled(sums: Self::Floats, ints: Self::Ints, scales: Self::Floats, scale: *const f32)
    -> Self::Floats;
    /// `sums + offsets · factor`
    unsafe fn add_offsets(sums: Self::Floats, offsets: Self::Floats, factor: f32) -> Self::Floats;
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn prefetch(at: *const u8);

    /// [`block`], compiled for the set.
    unsafe fn multiply<const VECTORS: usize>(rows: usize, bits: &Bits, panel: Panel, left: Left, out: Out);
}

/// What a kernel is compiled for: see [`Bits`].
const EIGHT: usize = 0;
const FOUR: usize = 1;
const OFFSET: usize = 2;

/// Blocks of a panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    lines: *const u8,
    scales: *const u16,
    /// With offsets.
    steps: *const f32,
    blocks: usize,
}

/// Rows of a [`RoundedRows`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    quants: *const i8,
    scales: *const f32,
    sums: *const i32,
}

/// Where the product goes: rows `row_stride` apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    data: *mut f32,
    row_stride: usize,
    accumulate: bool,
}

/// Multiplies `ROWS` rows by a panel of `VECTORS` vectors of columns.
///
/// # Safety
/// The processor has the instruction set; the operands cover the blocks of the panel, and `out` has room for `ROWS` rows of [`PANEL`] values.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "counted loops over registers read better than nested iterators")]
unsafe fn block<I: Integers, const KIND: usize, const ROWS: usize, const VECTORS: usize>(
    table: &Table,
    panel: Panel,
    left: Left,
    out: Out,
) {
    // SAFETY: by the contract of this function.
    unsafe {
        let table = I::table(table);
        let lines = if KIND == EIGHT { BLOCK / GROUP } else { BLOCK / GROUP / 2 };
        let mut sums = [[I::zero(); VECTORS]; ROWS];
        for block in 0..panel.blocks {
            let weights = panel.lines.wrapping_add(block * lines * LINE);
            let scales = panel.scales.wrapping_add(block * PANEL);
            let at = |row: usize| row * panel.blocks + block;
            for vector in 0..VECTORS {
                let mut ints = [I::start(left.sums); ROWS];
                for row in 0..ROWS {
                    ints[row] = I::start(left.sums.wrapping_add(at(row)));
                }
                for line in 0..lines {
                    let bytes = weights.wrapping_add(line * LINE + vector * I::COLUMNS * GROUP);
                    if vector == 0 {
                        I::prefetch(bytes.wrapping_add(AHEAD));
                    }
                    let quants = |row: usize, group: usize| left.quants.wrapping_add(at(row) * BLOCK + group * GROUP);
                    if KIND != EIGHT {
                        let [low, high] = I::four(bytes, table);
                        for row in 0..ROWS {
                            ints[row] = I::dot(ints[row], low, quants(row, 2 * line));
                        }
                        for row in 0..ROWS {
                            ints[row] = I::dot(ints[row], high, quants(row, 2 * line + 1));
                        }
                    } else {
                        let bytes = I::eight(bytes);
                        for row in 0..ROWS {
                            ints[row] = I::dot(ints[row], bytes, quants(row, line));
                        }
                    }
                }
                let (first, mut offsets) = (vector * I::COLUMNS, I::zero());
                let scales = if KIND == OFFSET {
                    let affine = I::affine(scales.wrapping_add(first), panel.steps.wrapping_add(first));
                    offsets = affine[1];
                    affine[0]
                } else {
                    I::load_f16(scales.wrapping_add(first))
                };
                for row in 0..ROWS {
                    let scale = left.scales.wrapping_add(at(row));
                    sums[row][vector] = I::add_scaled(sums[row][vector], ints[row], scales, scale);
                    if KIND == OFFSET {
                        let factor = *scale * *left.sums.wrapping_add(at(row)) as f32;
                        sums[row][vector] = I::add_offsets(sums[row][vector], offsets, factor);
                    }
                }
            }
        }
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                let at = out.data.wrapping_add(row * out.row_stride + vector * I::COLUMNS);
                let sum = sums[row][vector];
                I::store(at, if out.accumulate { I::add(I::load(at), sum) } else { sum });
            }
        }
    }
}

/// Picks the kernel for a number of rows and what weights are.
macro_rules! by_rows {
    ($set:ty, $vectors:ident, $rows:expr, $bits:expr, $arguments:tt, $($more:literal)*) => {{
        use $crate::engine::host::matmul::blocks::dots::{EIGHT, FOUR, OFFSET, block};
        match ($bits, $rows) {
            $(($crate::checkpoint::blocks::Bits::Eight, $more) => block::<$set, EIGHT, $more, $vectors> $arguments,)*
            $(($crate::checkpoint::blocks::Bits::Four(_), $more) => block::<$set, FOUR, $more, $vectors> $arguments,)*
            $(($crate::checkpoint::blocks::Bits::Offset, $more) => block::<$set, OFFSET, $more, $vectors> $arguments,)*
            _ => unreachable!("more rows than the kernel has"),
        }
    }};
}
use by_rows;

/// Parts of eight bits that each of so many rows is rounded to: two for a single row beside weights of eight bits, whose own rounding is no larger than that.
pub(in super::super) fn parts_of(rows: usize, bits: Bits) -> usize {
    if rows == 1 && bits == Bits::Eight { 2 } else { 1 }
}

fn product<I: Integers, const VECTORS: usize>(
    weight: &BlockMatrix,
    left: &[f32],
    out: &mut [MaybeUninit<f32>],
    accumulate: bool,
) {
    const { assert!(I::ROWS.is_multiple_of(2), "the parts of a row lie in one strip") };
    let (depth, width) = (weight.depth, weight.width);
    let rows = left.len() / depth.max(1);
    assert!(left.len() == rows * depth && out.len() == rows * width, "rows do not fit together");
    assert_eq!(I::COLUMNS * VECTORS, PANEL, "vectors do not make a panel");
    if rows == 0 || width == 0 {
        return;
    }
    let parts = parts_of(rows, weight.bits);
    let left = RoundedRows::new(left, depth, parts);
    let out = SharedOut(out.as_mut_ptr().cast());
    let task = |rows: Range<usize>, panels: Range<usize>| {
        // SAFETY: the rows and panels of a task are its own, and the set is one that the processor has.
        panels
            .for_each(|panel| unsafe { multiply::<I, VECTORS>(weight, &left, (out, accumulate), rows.clone(), panel) });
    };
    divide([rows * parts, depth, width], TASK_PANELS, I::ROWS, task);
}

/// All of `rows`, parts counted, times one panel.
///
/// # Safety
/// The processor has the instruction set; nobody else uses these rows and columns of the output.
unsafe fn multiply<I: Integers, const VECTORS: usize>(
    weight: &BlockMatrix,
    left: &RoundedRows,
    (out, accumulate): (SharedOut, bool),
    rows: Range<usize>,
    panel: usize,
) {
    let (lines, scales): (&[Line], &[u16]) = weight.panel(panel, 0);
    let blocks = left.blocks;
    let steps = weight.steps.get(panel * STEPS..).unwrap_or_default().as_ptr();
    let operand = Panel { lines: lines.as_ptr().cast(), scales: scales.as_ptr(), steps, blocks };
    let width = PANEL.min(weight.width - panel * PANEL);
    let mut buffer = [0.0; MOST_ROWS * PANEL];
    for row in rows.clone().step_by(I::ROWS) {
        let height = I::ROWS.min(rows.end - row);
        let part = Left {
            quants: left.quants[row * blocks * BLOCK..].as_ptr(),
            scales: left.scales[row * blocks..].as_ptr(),
            sums: left.sums[row * blocks..].as_ptr(),
        };
        let at = out.0.wrapping_add(row / left.parts * weight.width + panel * PANEL);
        // SAFETY: by the contract of this function; a ragged panel goes through a buffer that has room for it, and so do rows of two parts.
        unsafe {
            if width == PANEL && left.parts == 1 {
                let out = Out { data: at, row_stride: weight.width, accumulate };
                I::multiply::<VECTORS>(height, &weight.bits, operand, part, out);
                continue;
            }
            let whole = Out { data: buffer.as_mut_ptr(), row_stride: PANEL, accumulate: false };
            I::multiply::<VECTORS>(height, &weight.bits, operand, part, whole);
            for (row, parts) in buffer[..height * PANEL].chunks_exact(left.parts * PANEL).enumerate() {
                for column in 0..width {
                    let value: f32 = parts[column..].iter().step_by(PANEL).sum();
                    let at = at.wrapping_add(row * weight.width + column);
                    *at = if accumulate { *at + value } else { value };
                }
            }
        }
    }
}

/// The most rows of any set.
const MOST_ROWS: usize = 12;

#[cfg(test)]
mod tests;
