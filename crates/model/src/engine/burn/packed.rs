//! Weights of eight and four bits in device memory, widened to f32 for each product by burn's operations.

use burn::tensor::{DType, Int};
use half::f16;
use rayon::prelude::*;

use super::Burn;
use super::tensor::{Dispatched, Tensor, from_vec, from_words};
use crate::checkpoint::blocks::{self, BLOCK, Bits, Column, WeightColumns};

/// A weight `[input, output]` in blocks along the input.
#[derive(Debug)]
pub(super) struct Packed {
    /// Weights of neighbours along the input, the first in the lowest bits, `[blocks·words, output]` with the words of a block that are there for it.
    words: Dispatched<2, Int>,
    /// `[blocks, output]`
    scales: Tensor<2>,
    /// With [`Bits::Offset`], `[blocks, output]`.
    offsets: Option<Tensor<2>>,
    /// What four bits stand for, `[16]`.
    table: Option<Tensor<1>>,
    input: usize,
}

impl Packed {
    /// See [`crate::engine::Engine::load_linear`].
    pub(super) fn new(engine: &Burn, [input, output]: [usize; 2], bits: Bits, from: &impl WeightColumns) -> Self {
        let bits = bits.kept(from.bits());
        let blocks = input.div_ceil(BLOCK);
        let of_word = weights_of_word(bits);
        let words_of_column = blocks * BLOCK / of_word;
        let columns: Vec<(Vec<i32>, [Vec<f16>; 2])> = (0..output)
            .into_par_iter()
            .map_init(
                || (vec![0.0; input], Column::default()),
                |(values, rounded), n| {
                    blocks::blocks_of(from, bits, n, values, rounded);
                    let words = rounded.values.chunks_exact(of_word).map(word).collect();
                    (words, [rounded.scales.clone(), rounded.offsets.clone()])
                },
            )
            .collect();
        let mut words = vec![0; words_of_column * output];
        let mut of_blocks = [0, 1].map(|_| vec![0.0; blocks * output]);
        for (n, (of_column, halves)) in columns.into_iter().enumerate() {
            words[n..].iter_mut().step_by(output).zip(of_column).for_each(|(to, word)| *to = word);
            for (to, halves) in of_blocks.iter_mut().zip(halves) {
                to[n..].iter_mut().step_by(output).zip(halves).for_each(|(to, half)| *to = half.to_f32());
            }
        }
        let [scales, offsets] = of_blocks.map(|values| from_vec(values, [blocks, output], &engine.raw));
        let table = (bits != Bits::Eight).then(|| from_vec(bits.table().map(f32::from).to_vec(), [16], &engine.raw));
        Self {
            words: from_words(words, [words_of_column, output], &engine.raw),
            scales,
            offsets: (bits == Bits::Offset).then_some(offsets),
            table,
            input,
        }
    }

    /// The weight in f32.
    pub(super) fn widen(&self) -> Tensor<2> {
        let [words, output] = self.words.dims();
        let [blocks, _] = self.scales.dims();
        let bits = if self.table.is_some() { 4 } else { 8 };
        // Each shift brings one weight of every word to the top, and the second one, of the sign too, to the bottom.
        let parts = (0..32 / bits).map(|part| {
            let top = self.words.clone().bitwise_left_shift_scalar(32 - bits * (part + 1));
            let value = top.bitwise_right_shift_scalar(32 - bits);
            value.reshape([words, 1, output])
        });
        let values = Dispatched::<3, Int>::cat(parts.collect(), 1);
        let values = match &self.table {
            None => values.float(),
            Some(table) => {
                let numbers = values.bitwise_and_scalar(15).reshape([blocks * BLOCK * output]);
                table.clone().select(0, numbers).reshape([words, 32 / bits as usize, output])
            }
        };
        let scales = self.scales.clone().reshape([blocks, 1, output]);
        let mut values = values.cast(DType::F32).reshape([blocks, BLOCK, output]) * scales;
        if let Some(offsets) = &self.offsets {
            values = values + offsets.clone().reshape([blocks, 1, output]);
        }
        values.reshape([blocks * BLOCK, output]).narrow(0, 0, self.input)
    }
}

/// Weights that a word has.
fn weights_of_word(bits: Bits) -> usize {
    match bits {
        Bits::Eight => 4,
        Bits::Four(_) | Bits::Offset => 8,
    }
}

/// Neighbours in a word, each with as many bits as make it whole.
fn word(weights: &[i8]) -> i32 {
    let bits = 32 / weights.len();
    let mask = u32::MAX >> (32 - bits);
    let joined = weights.iter().rev().fold(0u32, |word, &weight| word << bits | (weight as u32 & mask));
    joined as i32
}
