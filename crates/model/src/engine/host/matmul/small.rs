//! Small products on strided parts of slices, on the calling thread: those of attention.

use std::cell::RefCell;

use super::PANEL;
use super::isa::Isa;
use super::micro::{Left, Micro, Out, Right, Stored, Tile};
#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
use super::simd::Portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};

/// A matrix within a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, E = f32> {
    data: &'a [E],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, E> Matrix<'a, E> {
    /// `rows` by `columns`, rows `stride` apart, from the start of `data`.
    pub(crate) fn new(data: &'a [E], [rows, columns]: [usize; 2], stride: usize) -> Self {
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    fn fits(&self) -> bool {
        spans(self.data.len(), [self.rows, self.columns], [self.row_stride, self.column_stride])
    }
}

fn spans(available: usize, [rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + (columns - 1) * column_stride < available
}

/// `out (+)= scale · left · right`, with the rows of `out` `stride` apart. Adds if `accumulate`, else overwrites.
///
/// # Panics
/// If the extents do not fit together or to the slices.
pub(crate) fn product<E: Stored>(
    (out, stride): (&mut [f32], usize),
    left: Matrix<'_>,
    right: Matrix<'_, E>,
    scale: f32,
    accumulate: bool,
) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    let fits = left.fits() && right.fits() && stride >= columns && spans(out.len(), [rows, columns], [stride, 1]);
    assert!(depth == right.rows && fits, "the extents do not fit together");
    let out = Out { data: out.as_mut_ptr(), row_stride: stride, scale, accumulate };
    // SAFETY: the processor has its best instruction set, and extents were just checked.
    unsafe {
        match Isa::best() {
            Isa::Portable => run::<Portable, E>(left, right, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => run::<Neon, E>(left, right, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => run::<Avx2, E>(left, right, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => run::<Avx512, E>(left, right, out),
        }
    }
}

thread_local! {
    /// A panel of a right matrix that cannot be read as it lies.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// # Safety
/// The processor has the instruction set; `left` and `right` fit together, and `out` has room for their product.
unsafe fn run<S: Micro, E: Stored>(left: Matrix<'_>, right: Matrix<'_, E>, out: Out) {
    PACKED.with_borrow_mut(|packed| {
        for first in (0..right.columns).step_by(PANEL) {
            let width = PANEL.min(right.columns - first);
            // SAFETY: by the contract of this function; columns from `first` on are written by this iteration alone.
            unsafe {
                if right.column_stride == 1 && width == PANEL {
                    let data = right.data[first..].as_ptr();
                    let panel = Right { data, panel_stride: 0, depth_stride: right.row_stride, ahead: 0 };
                    rows::<S, E>(left, panel, (first, width), out);
                } else {
                    pack::<S, E>(right, first, width, packed);
                    let panel = Right { data: packed.as_ptr(), panel_stride: 0, depth_stride: PANEL, ahead: 0 };
                    rows::<S, f32>(left, panel, (first, width), out);
                }
            }
        }
    });
}

/// Copies `width` columns of `right` from `first` on to rows of [`PANEL`] values, filled up with zeros.
///
/// # Safety
/// The processor has the instruction set.
unsafe fn pack<S: Micro, E: Stored>(right: Matrix<'_, E>, first: usize, width: usize, packed: &mut Vec<f32>) {
    packed.clear();
    packed.resize(right.rows.next_multiple_of(PANEL) * PANEL, 0.0);
    if right.row_stride == 1 && width == PANEL {
        // Columns that lie as rows: squares of them are turned.
        let (tiles, _) = packed.as_chunks_mut().0.as_chunks_mut();
        for (depth, tile) in (0..right.rows).step_by(PANEL).zip(tiles) {
            let height = PANEL.min(right.rows - depth);
            // SAFETY: `width` rows of `height` values lie within `right`.
            unsafe {
                turn::<S, E>(&right.data[first * right.column_stride + depth..], right.column_stride, height, tile)
            };
        }
        return;
    }
    for (k, row) in packed.chunks_exact_mut(PANEL).enumerate().take(right.rows) {
        for (n, value) in row.iter_mut().enumerate().take(width) {
            *value = right.data[k * right.row_stride + (first + n) * right.column_stride].widen();
        }
    }
}

/// Turns [`PANEL`] rows of `height` values, `stride` apart, to `height` rows of a tile.
///
/// # Safety
/// The processor has the instruction set.
unsafe fn turn<S: Micro, E: Stored>(rows: &[E], stride: usize, height: usize, tile: &mut Tile) {
    if height == PANEL {
        // SAFETY: by the contract of this function.
        return unsafe { S::turn(rows, stride, PANEL, tile) };
    }
    for (k, row) in tile.iter_mut().enumerate().take(height) {
        for (n, value) in row.iter_mut().enumerate() {
            *value = rows[n * stride + k].widen();
        }
    }
}

/// All rows of `left` times one panel.
///
/// # Safety
/// As [`run`].
unsafe fn rows<S: Micro, E: Stored>(left: Matrix<'_>, panel: Right<E>, (first, width): (usize, usize), out: Out) {
    let mut buffer = [0.0; super::driver::MOST_ROWS * PANEL];
    for row in (0..left.rows).step_by(S::ROWS) {
        let height = S::ROWS.min(left.rows - row);
        let data = left.data[row * left.row_stride..].as_ptr();
        let part = Left { data, row_stride: left.row_stride, depth_stride: left.column_stride };
        let to = out.data.wrapping_add(row * out.row_stride + first);
        // SAFETY: rows and columns are within the matrices; a ragged panel goes through a buffer that has room for it.
        unsafe {
            if width == PANEL {
                S::multiply([height, 1], left.columns, part, panel, Out { data: to, ..out });
                continue;
            }
            let whole = Out { data: buffer.as_mut_ptr(), row_stride: PANEL, accumulate: false, ..out };
            S::multiply([height, 1], left.columns, part, panel, whole);
            for (row, values) in buffer.chunks_exact(PANEL).take(height).enumerate() {
                for (column, &value) in values.iter().enumerate().take(width) {
                    let at = to.wrapping_add(row * out.row_stride + column);
                    *at = if out.accumulate { *at + value } else { value };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 7919 + 13) % 251) as f32 / 128.0 - 1.0
    }

    /// `rows` by `columns` of made-up values, as it lies or transposed, with gaps between rows.
    fn stored(rows: usize, columns: usize, transposed: bool) -> (Vec<f32>, usize) {
        let (lines, length) = if transposed { (columns, rows) } else { (rows, columns) };
        ((0..lines * (length + 3)).map(value).collect(), length + 3)
    }

    fn matrix(values: &[f32], rows: usize, columns: usize, stride: usize, transposed: bool) -> Matrix<'_> {
        if transposed {
            Matrix::new(values, [columns, rows], stride).transposed()
        } else {
            Matrix::new(values, [rows, columns], stride)
        }
    }

    #[test]
    fn products_of_every_orientation_agree_with_plain_sums() {
        for [rows, depth, columns] in [[1, 1, 1], [6, 16, 16], [7, 5, 20], [64, 64, 80], [13, 33, 48], [30, 6, 3]] {
            for (left_turned, right_turned) in [(false, false), (false, true), (true, false), (true, true)] {
                let (left, left_stride) = stored(rows, depth, left_turned);
                let (right, right_stride) = stored(depth, columns, right_turned);
                let a = matrix(&left, rows, depth, left_stride, left_turned);
                let b = matrix(&right, depth, columns, right_stride, right_turned);
                let stride = columns + 2;
                let start: Vec<f32> = (0..rows * stride).map(|i| value(i + 77)).collect();
                for accumulate in [false, true] {
                    let mut out = start.clone();
                    product((&mut out, stride), a, b, 0.5, accumulate);
                    for (i, &got) in out.iter().enumerate() {
                        let (row, column) = (i / stride, i % stride);
                        let term = |k: usize| {
                            a.data[row * a.row_stride + k * a.column_stride]
                                * b.data[k * b.row_stride + column * b.column_stride]
                        };
                        let before = if accumulate { start[i] } else { 0.0 };
                        let expected =
                            if column < columns { before + 0.5 * (0..depth).map(term).sum::<f32>() } else { start[i] };
                        assert!((got - expected).abs() < 1e-4, "{rows}x{depth}x{columns} at {i}: {got} for {expected}");
                    }
                }
            }
        }
    }
}
