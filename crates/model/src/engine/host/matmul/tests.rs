mod blocks;
mod ulps;

use std::mem::MaybeUninit;

use super::FrozenMatrix;
use super::driver::Direction;
use super::isa::Isa;
use super::pairs::{self, PairMatrix, Plain};
use crate::device::Dtype;

/// Values that repeat late and are exact in bf16 and f16.
fn value(n: usize) -> f32 {
    ((n * 7919 + 13) % 251) as f32 / 128.0 - 1.0
}

fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|n| value(n + 1009 * seed)).collect()
}

/// `(k, n)` of the weight.
fn weight(k: usize, n: usize) -> f32 {
    value(k * 31 + n * 1013)
}

fn expected(direction: Direction, [rows, depth, width]: [usize; 3], left: &[f32], start: &[f32]) -> Vec<f32> {
    let (inner, columns) = direction.extents(depth, width);
    let mut out = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let term = |i: usize| {
                let w = if direction == Direction::Forward { weight(i, column) } else { weight(column, i) };
                f64::from(left[row * inner + i]) * f64::from(w)
            };
            let sum: f64 = (0..inner).map(term).sum();
            out.push((sum + f64::from(start[row * columns + column])) as f32);
        }
    }
    out
}

/// One row to several blocks, depths and widths on both sides of every block's and panel's edge.
const SHAPES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [1, 64, 48],
    [2, 17, 33],
    [3, 300, 16],
    [5, 16, 70],
    [13, 257, 31],
    [24, 40, 129],
    [31, 512, 96],
    [97, 270, 100],
    [200, 33, 17],
    [230, 128, 640],
    [790, 530, 40],
];

fn write_column(n: usize, column: &mut [f32]) {
    column.iter_mut().enumerate().for_each(|(k, v)| *v = weight(k, n));
}

fn matrix(isa: Isa, shape: [usize; 2], dtype: Dtype) -> FrozenMatrix {
    let matrix = FrozenMatrix::for_isa(isa, shape, dtype, &write_column);
    assert_eq!(matrix.shape(), shape);
    matrix
}

#[test]
fn every_instruction_set_dtype_and_direction_agrees_with_plain_sums() {
    for shape @ [rows, depth, width] in SHAPES {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let matrices: Vec<(Isa, FrozenMatrix)> =
                Isa::available().into_iter().map(|isa| (isa, matrix(isa, [depth, width], dtype))).collect();
            for direction in [Direction::Forward, Direction::Backward] {
                let (inner, columns) = direction.extents(depth, width);
                let (left, start) = (values(1, rows * inner), values(2, rows * columns));
                for accumulate in [false, true] {
                    let before = if accumulate { start.clone() } else { vec![0.0; start.len()] };
                    let expected = expected(direction, shape, &left, &before);
                    let largest = expected.iter().fold(1.0f32, |a, b| a.max(b.abs()));
                    for (isa, matrix) in &matrices {
                        let mut out = start.clone();
                        if accumulate {
                            matrix.product_onto(direction, &left, &mut out);
                        } else {
                            out = matrix.product_alone(direction, &left);
                        }
                        let worst = out.iter().zip(&expected).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
                        assert!(
                            worst <= 2e-6 * largest,
                            "{isa:?} {dtype} {direction:?} {shape:?} accumulate {accumulate}: {worst} of {largest}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_times_something_is_nothing() {
    let matrix = FrozenMatrix::from_columns([4, 20], Dtype::F32, &|_: usize, column: &mut [f32]| column.fill(1.0));
    assert!(matrix.forward(&[]).is_empty());
    matrix.backward_onto(&[], &mut []);
}

/// The values here are exact in bf16, so rounding the left matrix changes nothing.
#[test]
#[allow(unsafe_code)]
fn products_of_pairs_agree_with_plain_sums() {
    for shape @ [rows, depth, width] in SHAPES {
        let matrix = PairMatrix::from_columns([depth, width], &write_column);
        for direction in [Direction::Forward, Direction::Backward] {
            let (inner, columns) = direction.extents(depth, width);
            let (left, start) = (values(1, rows * inner), values(2, rows * columns));
            let mut out: Vec<_> = start.iter().copied().map(MaybeUninit::new).collect();
            pairs::product::<Plain>(&matrix, direction, &left, &mut out, true);
            // SAFETY: every value was initialised above.
            let out: Vec<f32> = out.iter().map(|v| unsafe { v.assume_init() }).collect();
            let expected = expected(direction, shape, &left, &start);
            let largest = expected.iter().fold(1.0f32, |a, b| a.max(b.abs()));
            let worst = out.iter().zip(&expected).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
            assert!(worst <= 2e-6 * largest, "{direction:?} {shape:?}: {worst} of {largest}");
        }
    }
}
