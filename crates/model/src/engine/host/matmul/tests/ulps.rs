//! Every instruction set against plain Rust, with values that use all of their bits.
//!
//! A sum of many terms is rounded at every step, and where terms cancel out, little is left of it but that. So units in the last place are those of the sum
//! of the terms' magnitudes, which is what rounding errors grow with.

use super::SHAPES;
use super::blocks::{KINDS, written};
use crate::device::Dtype;
use crate::engine::host::matmul::FrozenMatrix;
use crate::engine::host::matmul::blocks::{BlockMatrix, Dots};
use crate::engine::host::matmul::driver::Direction;
use crate::engine::host::matmul::isa::Isa;

/// How far a set may be away.
const ULPS: f64 = 4.0;

/// From -1 to 1, with 23 bits that follow no pattern.
fn value(n: usize) -> f32 {
    let mut bits = (n as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    for shift in [16, 13] {
        bits = (bits ^ bits >> shift).wrapping_mul(0x85eb_ca6b);
    }
    ((bits >> 8) as f32 - 8_388_607.5) / 8_388_608.0
}

fn write_column(n: usize, column: &mut [f32]) {
    column.iter_mut().enumerate().for_each(|(k, v)| *v = value(k * 31 + n * 10_007));
}

/// Rows of the left matrix; those that sets which multiply bf16 do not round.
fn left(count: usize, in_bf16: bool) -> Vec<f32> {
    let kept = if in_bf16 { 0xffff_0000 } else { u32::MAX };
    (0..count).map(|n| f32::from_bits(value(n + 77_777).to_bits() & kept)).collect()
}

/// The sums of the terms' magnitudes.
fn magnitudes(direction: Direction, shape: [usize; 2], left: &[f32]) -> Vec<f32> {
    let weight = FrozenMatrix::for_isa(Isa::Portable, shape, Dtype::F32, &|n: usize, column: &mut [f32]| {
        write_column(n, column);
        column.iter_mut().for_each(|v| *v = v.abs());
    });
    let left: Vec<f32> = left.iter().map(|v| v.abs()).collect();
    weight.product_alone(direction, &left)
}

fn assert_within_ulps(what: &str, out: &[f32], plain: &[f32], magnitudes: &[f32]) {
    assert!(out.len() == plain.len() && out.len() == magnitudes.len(), "{what}: number of values");
    for (i, ((&out, &plain), &magnitude)) in out.iter().zip(plain).zip(magnitudes).enumerate() {
        let ulp = f64::from(f32::from_bits(magnitude.to_bits() + 1) - magnitude);
        let ulps = (f64::from(out) - f64::from(plain)).abs() / ulp;
        assert!(ulps <= ULPS, "{what}: {out} at {i} is {ulps} ulp from {plain}");
    }
}

#[test]
fn products_of_every_set_are_within_four_ulp_of_plain_rust() {
    for [rows, depth, width] in SHAPES {
        let shape = [depth, width];
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Int8, Dtype::Int4] {
            let matrix = |isa| FrozenMatrix::for_isa(isa, shape, dtype, &write_column);
            let plain = matrix(Isa::Portable);
            // Sets that multiply bf16 round what is widened to it.
            let whole = matches!(dtype, Dtype::Int8 | Dtype::Int4);
            let sets = Isa::available().into_iter().filter(|isa| !(whole && isa.multiplies_bf16()));
            let others: Vec<_> = sets.map(|isa| (isa, matrix(isa))).collect();
            for direction in [Direction::Forward, Direction::Backward] {
                let (inner, _) = direction.extents(depth, width);
                let left = left(rows * inner, dtype == Dtype::Bf16);
                let (plain, magnitudes) = (plain.product_alone(direction, &left), magnitudes(direction, shape, &left));
                for (isa, matrix) in &others {
                    let what = format!("{isa:?} {dtype} {direction:?} {rows} x {shape:?}");
                    assert_within_ulps(&what, &matrix.product_alone(direction, &left), &plain, &magnitudes);
                }
            }
        }
    }
}

#[test]
fn integer_products_of_every_set_are_within_four_ulp_of_plain_rust() {
    for [rows, depth, width] in SHAPES {
        let (left, shape) = (left(rows * depth, false), [depth, width]);
        let magnitudes = magnitudes(Direction::Forward, shape, &left);
        for bits in KINDS {
            let matrix = BlockMatrix::from_columns(shape, bits, &write_column);
            let product =
                |dots: Dots| written(rows * width, |out, accumulate| dots.product(&matrix, &left, out, accumulate));
            let plain = product(Dots::Plain);
            for dots in Dots::available() {
                let what = format!("{dots:?} {bits:?} {rows} x {shape:?}");
                assert_within_ulps(&what, &product(dots), &plain, &magnitudes);
            }
        }
    }
}
