//! Products with a weight that is read where it lies, column by column, for weights that memory does not hold.
//!
//! Every product reads the whole weight, from the file where the system has not kept it.

use std::fmt;

use rayon::prelude::*;

use super::simd::{sum2, vectorized};

/// Columns that a thread takes at a time.
const COLUMNS: usize = 16;

/// Writes the values of a column.
type Column = dyn Fn(usize, &mut [f32]) + Send + Sync;

/// A weight `[input, output]`.
pub(super) struct InPlace {
    shape: [usize; 2],
    column: Box<Column>,
}

impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [input, output] = self.shape;
        write!(f, "InPlace({input}x{output})")
    }
}

impl InPlace {
    pub(super) fn new(shape: [usize; 2], column: impl Fn(usize, &mut [f32]) + Send + Sync + 'static) -> Self {
        Self { shape, column: Box::new(column) }
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Adds `x·W`, `x` `[rows, input]`, to `y` `[rows, output]`.
    pub(super) fn forward_onto(&self, x: &[f32], y: &mut [f32]) {
        let [input, output] = self.shape;
        let rows = x.len() / input.max(1);
        // Of each run of columns the products `[columns, rows]`.
        let run = |first: usize| {
            let (mut values, mut products) = (vec![0.0; input], Vec::with_capacity(COLUMNS * rows));
            for number in first..output.min(first + COLUMNS) {
                (self.column)(number, &mut values);
                let dot = |x: &[f32]| {
                    vectorized(
                        #[inline(always)]
                        || sum2(x, &values, |x, w| x * w),
                    )
                };
                products.extend(x.chunks_exact(input).map(dot));
            }
            products
        };
        let runs: Vec<Vec<f32>> = (0..output).into_par_iter().step_by(COLUMNS).map(run).collect();
        for (first, products) in (0..output).step_by(COLUMNS).zip(&runs) {
            for (number, products) in products.chunks_exact(rows.max(1)).enumerate() {
                let sums = y.iter_mut().skip(first + number).step_by(output);
                sums.zip(products).for_each(|(sum, product)| *sum += product);
            }
        }
    }

    /// Adds `dy·Wᵀ`, `dy` `[rows, output]`, to `dx` `[rows, input]`.
    pub(super) fn backward_onto(&self, dy: &[f32], dx: &mut [f32]) {
        let [input, output] = self.shape;
        let part = |mut sums: Vec<f32>, first: usize| {
            let mut values = vec![0.0; input];
            for number in first..output.min(first + COLUMNS) {
                (self.column)(number, &mut values);
                for (sums, dy) in sums.chunks_exact_mut(input).zip(dy.chunks_exact(output)) {
                    let g = dy[number];
                    vectorized(
                        #[inline(always)]
                        || sums.iter_mut().zip(&values).for_each(|(sum, w)| *sum += g * w),
                    );
                }
            }
            sums
        };
        let add = |mut a: Vec<f32>, b: Vec<f32>| {
            a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
            a
        };
        let zeros = || vec![0.0; dx.len()];
        let runs = (0..output).into_par_iter().step_by(COLUMNS);
        let sums = runs.fold(zeros, part).reduce(zeros, add);
        dx.iter_mut().zip(&sums).for_each(|(dx, sum)| *dx += sum);
    }
}

#[cfg(test)]
mod tests {
    use crate::device::Dtype;
    use crate::engine::host::linear::Linear;
    use crate::fixture::noise;

    #[test]
    fn products_are_those_of_a_weight_in_memory() {
        let [input, output, rows] = [37, 53, 5];
        let weight = noise(3, input * output);
        let columns = weight.clone();
        let column = move |n: usize, out: &mut [f32]| out.copy_from_slice(&columns[n * input..(n + 1) * input]);
        let bias = Some(noise(4, output));
        let kept = Linear::new([input, output], bias.clone(), Dtype::F32, &column);
        let read = Linear::in_place([input, output], bias, column);
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let (x, dy) = (noise(5, rows * input), noise(6, rows * output));
        assert!(close(kept.forward(&x).values(), read.forward(&x).values()));
        assert!(close(kept.backward(&dy).values(), read.backward(&dy).values()));
        let (mut a, mut b) = (noise(7, rows * output), noise(7, rows * output));
        kept.forward_onto(&x, &mut a);
        read.forward_onto(&x, &mut b);
        assert!(close(&a, &b));
        let (mut a, mut b) = (noise(8, rows * input), noise(8, rows * input));
        kept.backward_onto(&dy, &mut a);
        read.backward_onto(&dy, &mut b);
        assert!(close(&a, &b));
    }
}
