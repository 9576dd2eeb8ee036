//! Which instruction set computes.

use std::sync::OnceLock;

use super::FrozenMatrix;
use crate::device::Dtype;

/// Instruction sets that products are compiled for, from the least to the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Plain Rust, for every processor.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// Matrix tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Isa {
    /// Whether bf16 is multiplied by bf16, in pairs, instead of being widened first.
    pub(super) fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Self::Avx512Bf16 | Self::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

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
        let matrix = FrozenMatrix::for_isa(self, [DEPTH, WIDTH], Dtype::Bf16, |n, column| {
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

    /// The sets that this processor has, the best one last.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 {
                sets.push(Self::Avx2);
            }
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                sets.push(Self::Avx512);
                if has!("avx512bf16") {
                    sets.push(Self::Avx512Bf16);
                    if super::pairs::amx_is_usable() {
                        sets.push(Self::Amx);
                    }
                }
            }
        }
        sets
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
