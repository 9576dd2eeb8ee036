//! Small products on strided parts of slices, on the calling thread.

/// A matrix within a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` by `columns`, rows `stride` apart, from the start of `data`.
    pub(super) fn new(data: &'a [f32], [rows, columns]: [usize; 2], stride: usize) -> Self {
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    pub(super) fn columns(&self) -> usize {
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
#[allow(unsafe_code)]
pub(super) fn product(
    (out, stride): (&mut [f32], usize),
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    accumulate: bool,
) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert!(k == right.rows && left.fits() && right.fits() && stride >= n && spans(out.len(), [m, n], [stride, 1]));
    // SAFETY: every element that the extents and strides reach lies within its slice (just asserted), rows of `out` do
    // not overlap, and `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
