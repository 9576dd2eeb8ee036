//! Which instruction set computes: the best that the processor has and that computes rightly.

use std::sync::OnceLock;

use super::FrozenMatrix;
use super::isa::Isa;
use crate::checkpoint::blocks::WeightColumns;
use crate::device::Dtype;

impl FrozenMatrix {
    /// Lays out a weight given as its columns of `depth` values. (A checkpoint's
    /// `[output, input]` matrix has the columns of `[input, output]` as its rows.)
    pub(crate) fn from_columns(shape: [usize; 2], dtype: Dtype, columns: &impl WeightColumns) -> Self {
        Self::for_isa(Isa::best(), shape, dtype, columns)
    }
}

impl Isa {
    /// The best set that this processor has. One that does not compute what it should (an emulator's, or one that a
    /// kernel only half supports) is passed over.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let right = Self::available().into_iter().rev().find(|isa| isa.computes_rightly());
            right.unwrap_or(Self::Portable)
        })
    }

    /// Tries a small product of bf16 with whole and ragged blocks. All of its sums are exact.
    fn computes_rightly(self) -> bool {
        const ROWS: usize = 45;
        const DEPTH: usize = 40;
        const WIDTH: usize = 50;
        let weight = |k: usize, n: usize| ((3 * k + 5 * n) % 7) as f32 - 3.0;
        let value = |row: usize, k: usize| ((2 * row + k) % 5) as f32 - 2.0;
        let matrix = FrozenMatrix::for_isa(self, [DEPTH, WIDTH], Dtype::Bf16, &|n: usize, column: &mut [f32]| {
            column.iter_mut().enumerate().for_each(|(k, v)| *v = weight(k, n));
        });
        let left: Vec<f32> = (0..ROWS * DEPTH).map(|i| value(i / DEPTH, i % DEPTH)).collect();
        // A single row takes another way than many.
        [1, ROWS].into_iter().all(|rows| {
            let out = matrix.forward(&left[..rows * DEPTH]);
            out.iter().enumerate().all(|(i, &sum)| {
                let (row, n) = (i / WIDTH, i % WIDTH);
                sum == (0..DEPTH).map(|k| value(row, k) * weight(k, n)).sum::<f32>()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_this_processor_computes_rightly() {
        for isa in Isa::available() {
            assert!(isa.computes_rightly(), "{isa:?}");
        }
        assert_eq!(Some(&Isa::best()), Isa::available().last());
    }
}
