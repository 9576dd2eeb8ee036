//! Weights of eight and four bits, against sums of the values that they stand for.

use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::{SHAPES, values, weight, write_column};
use crate::checkpoint::blocks::{self, BLOCK, Bits, Column, FITTED};
use crate::engine::host::matmul::blocks::{BlockMatrix, Dots, parts_of};
use crate::engine::host::matmul::driver::{self, Direction, Operands};
use crate::engine::host::matmul::isa::Isa;
use crate::engine::host::matmul::pairs::{self, Plain};

pub(super) const KINDS: [Bits; 3] = [Bits::Eight, Bits::Four(FITTED), Bits::Offset];

/// `[depth, width]` of what the rounded weight stands for.
fn rounded(bits: Bits, [depth, width]: [usize; 2]) -> Vec<f32> {
    let mut weights = vec![0.0; depth * width];
    for n in 0..width {
        let mut column = vec![0.0; depth];
        write_column(n, &mut column);
        let mut to = Column::default();
        blocks::round(bits, &column, &mut to);
        // Scales and offsets that are counted are so many steps, to the last bit.
        let counted = |value: f16, step: f32| (value.to_f32() / step).round() * step;
        let [of_scale, of_offset] = to.steps();
        for k in 0..depth {
            weights[k * width + n] = match to.offsets.get(k / BLOCK) {
                Some(offset) => {
                    f32::from(to.values[k]) * counted(to.scales[k / BLOCK], of_scale) + counted(*offset, of_offset)
                }
                None => to.value(bits, k),
            };
        }
    }
    weights
}

/// What a row is once its blocks are rounded to eight bits, or to eight and what is left to eight more.
fn rounded_left(left: &[f32], inner: usize, parts: usize) -> Vec<f32> {
    let round = |values: &[f32]| {
        let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let inverse = if most == 0.0 { 0.0 } else { 127.0 / most };
        values.iter().map(|v| (v * inverse).round_ties_even() * (most / 127.0)).collect::<Vec<_>>()
    };
    let block = |values: &[f32]| {
        let mut rounded = round(values);
        for _ in 1..parts {
            let lost: Vec<f32> = values.iter().zip(&rounded).map(|(v, rounded)| v - rounded).collect();
            rounded.iter_mut().zip(round(&lost)).for_each(|(v, more)| *v += more);
        }
        rounded
    };
    left.chunks(inner).flat_map(|row| row.chunks(BLOCK).flat_map(block)).collect()
}

fn expected(direction: Direction, [rows, depth, width]: [usize; 3], left: &[f32], weights: &[f32]) -> Vec<f32> {
    let (inner, columns) = direction.extents(depth, width);
    let at = |i: usize, column: usize| match direction {
        Direction::Forward => weights[i * width + column],
        Direction::Backward => weights[column * width + i],
    };
    let sum = |row: usize, column: usize| {
        (0..inner).map(|i| f64::from(left[row * inner + i]) * f64::from(at(i, column))).sum::<f64>() as f32
    };
    (0..rows * columns).map(|i| sum(i / columns, i % columns)).collect()
}

fn assert_near(what: &str, out: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    let worst = out.iter().zip(expected).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
    assert!(worst <= 3e-6 * largest, "{what}: {worst} of {largest}");
}

/// What `product` writes, alone and on top of something.
#[allow(unsafe_code)]
pub(super) fn written(count: usize, product: impl Fn(&mut [MaybeUninit<f32>], bool)) -> Vec<f32> {
    let start = values(2, count);
    let [alone, added] = [false, true].map(|accumulate| {
        let mut out: Vec<_> = start.iter().copied().map(MaybeUninit::new).collect();
        product(&mut out, accumulate);
        // SAFETY: every value was initialised above.
        out.iter().map(|v| unsafe { v.assume_init() }).collect::<Vec<f32>>()
    });
    let sums: Vec<f32> = alone.iter().zip(&start).map(|(sum, start)| sum + start).collect();
    assert_near("added", &added, &sums);
    alone
}

#[test]
fn integer_products_of_every_set_agree_with_plain_sums() {
    for shape @ [rows, depth, width] in SHAPES {
        for bits in KINDS {
            let matrix = BlockMatrix::from_columns([depth, width], bits, &write_column);
            let left = values(1, rows * depth);
            let weights = rounded(bits, [depth, width]);
            let expected =
                expected(Direction::Forward, shape, &rounded_left(&left, depth, parts_of(rows, bits)), &weights);
            for dots in Dots::available() {
                let out = written(rows * width, |out, accumulate| dots.product(&matrix, &left, out, accumulate));
                assert_near(&format!("{dots:?} {bits:?} {shape:?}"), &out, &expected);
            }
        }
    }
}

#[test]
fn a_single_row_is_hardly_rounded() {
    let (depth, width) = (512, 40);
    let matrix = BlockMatrix::from_columns([depth, width], Bits::Eight, &write_column);
    let weights = rounded(Bits::Eight, [depth, width]);
    // Unlike those of `values` these are no few eighths.
    let left: Vec<f32> = values(1, depth).iter().enumerate().map(|(i, v)| v + (i as f32).sin() / 7.0).collect();
    let expected = expected(Direction::Forward, [1, depth, width], &left, &weights);
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for dots in Dots::available() {
        let out = written_once(width, |out| dots.product(&matrix, &left, out, false));
        let worst = out.iter().zip(&expected).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
        assert!(worst < 3e-5 * largest, "{dots:?}: {worst} of {largest}");
    }
}

#[test]
fn widened_weights_of_every_set_and_direction_agree_with_plain_sums() {
    for shape @ [rows, depth, width] in SHAPES {
        for bits in KINDS {
            let weight = &BlockMatrix::from_columns([depth, width], bits, &write_column);
            let weights = rounded(bits, [depth, width]);
            let in_bf16: Vec<f32> = weights.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
            for direction in [Direction::Forward, Direction::Backward] {
                let (inner, columns) = direction.extents(depth, width);
                let left = &values(1, rows * inner)[..];
                for isa in Isa::available() {
                    let out = written(rows * columns, |out, accumulate| {
                        driver::run(isa, Operands { weight, depth, width, left, out, direction, accumulate });
                    });
                    let what = format!("{isa:?} {bits:?} {direction:?} {shape:?}");
                    assert_near(&what, &out, &expected(direction, shape, left, &weights));
                }
                // The left values are exact in bf16.
                let out = written(rows * columns, |out, accumulate| {
                    pairs::product::<Plain>(weight, direction, left, out, accumulate);
                });
                let what = format!("pairs {bits:?} {direction:?} {shape:?}");
                assert_near(&what, &out, &expected(direction, shape, left, &in_bf16));
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_is_not_lost() {
    let matrix = BlockMatrix::from_columns([64, 20], Bits::Eight, &write_column);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut left = values(1, 64);
        left[40] = bad;
        for dots in Dots::available() {
            let out = written_once(20, |out| dots.product(&matrix, &left, out, false));
            assert!(out.iter().all(|v| !v.is_finite()), "{dots:?} {bad}: {out:?}");
        }
    }
}

#[allow(unsafe_code)]
fn written_once(count: usize, product: impl Fn(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut out = vec![MaybeUninit::new(0.0); count];
    product(&mut out);
    // SAFETY: every value was initialised above.
    out.iter().map(|v| unsafe { v.assume_init() }).collect()
}

#[test]
fn bytes_are_those_that_the_dtypes_state() {
    let bytes = |bits| BlockMatrix::from_columns([64, 20], bits, &write_column).bytes();
    assert_eq!(bytes(Bits::Eight), crate::Dtype::Int8.bytes(64 * 20));
    assert_eq!(bytes(Bits::Four(FITTED)), crate::Dtype::Int4.bytes(64 * 20));
    // Of long columns the steps are next to nothing.
    let column_steps = 2 * 4 * 20;
    assert_eq!(bytes(Bits::Offset), crate::Dtype::Int4.bytes(64 * 20) + column_steps);
    // Used by the other tests: the columns of the weight.
    let mut column = [0.0; 3];
    write_column(5, &mut column);
    assert_eq!(column[2], weight(2, 5));
}
