//! Keys, or values, as a device keeps them: in f32, in half precision, or in eight bits, four of them in a word.

use burn::tensor::{DType, Int, IntDType};

use super::tensor::{Dispatched, RawDevice, Tensor};
use crate::device::KvDtype;

/// Those of a block, by head, for all positions that there is room for.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "handles of tensors, two for each block of a sequence")]
pub(super) enum Kept {
    /// `[key_heads, capacity, dim]`, in the dtype that they are kept in.
    Float(Tensor<3>),
    /// In eight bits.
    Eight(Eight),
}

/// Neighbours in a word, the first in the lowest bits, `[key_heads, capacity, words]`, and a scale for each position of a head, `[key_heads, capacity, 1]`.
#[derive(Debug, Clone)]
pub(super) struct Eight {
    words: Dispatched<3, Int>,
    scales: Tensor<3>,
    dim: usize,
}

/// Values of eight bits in a word.
const OF_WORD: usize = 4;

impl Kept {
    pub(super) fn zeros([heads, positions, dim]: [usize; 3], dtype: KvDtype, device: &RawDevice) -> Self {
        let float = |dtype| Self::Float(Tensor::zeros([heads, positions, dim], (device, dtype)));
        match dtype {
            KvDtype::Auto | KvDtype::F32 => float(DType::F32),
            KvDtype::Bf16 => float(DType::BF16),
            KvDtype::F16 => float(DType::F16),
            KvDtype::Int8 => Self::eight(
                Dispatched::zeros([heads, positions, dim.div_ceil(OF_WORD)], (device, DType::I32)),
                Tensor::zeros([heads, positions, 1], (device, DType::F32)),
                dim,
            ),
        }
    }

    fn eight(words: Dispatched<3, Int>, scales: Tensor<3>, dim: usize) -> Self {
        Self::Eight(Eight { words, scales, dim })
    }

    /// Writes `[key_heads, n, dim]` over the positions from `at` on; in place, if nobody else holds the tensors.
    pub(super) fn put(self, at: usize, new: Tensor<3>) -> Self {
        let [heads, count, dim] = new.dims();
        let area = |width: usize| [0..heads, at..at + count, 0..width];
        match self {
            Self::Float(all) => {
                let dtype = all.dtype();
                // What f16 does not reach becomes the largest that it has.
                let new = if dtype == DType::F16 { new.clamp(-65504.0, 65504.0) } else { new };
                Self::Float(all.slice_assign(area(dim), new.cast(dtype)))
            }
            Self::Eight(kept) => {
                let Eight { words, scales, dim } = kept;
                let (new_words, new_scales) = rounded(new);
                let [_, _, of_position] = new_words.dims();
                let words = words.slice_assign(area(of_position), new_words);
                Self::eight(words, scales.slice_assign(area(1), new_scales), dim)
            }
        }
    }

    /// The first `len` positions.
    pub(super) fn first(self, len: usize) -> Self {
        match self {
            Self::Float(all) => Self::Float(all.narrow(1, 0, len)),
            Self::Eight(kept) => Self::eight(kept.words.narrow(1, 0, len), kept.scales.narrow(1, 0, len), kept.dim),
        }
    }

    /// Followed by `more` of the same dtype.
    pub(super) fn then(self, more: Self) -> Self {
        match (self, more) {
            (Self::Float(all), Self::Float(more)) => Self::Float(Tensor::cat(vec![all, more], 1)),
            (Self::Eight(all), Self::Eight(more)) => Self::eight(
                Dispatched::cat(vec![all.words, more.words], 1),
                Tensor::cat(vec![all.scales, more.scales], 1),
                all.dim,
            ),
            _ => unreachable!("one cache has one dtype"),
        }
    }

    /// A copy that holds on to nothing else.
    pub(super) fn copied(self) -> Self {
        match self {
            Self::Float(all) => Self::Float(all + 0.0),
            Self::Eight(kept) => Self::eight(kept.words + 0, kept.scales + 0.0, kept.dim),
        }
    }

    /// `[key_heads, capacity, dim]` in f32: as it lies if that is its dtype.
    pub(super) fn widened(self) -> Tensor<3> {
        match self {
            Self::Float(all) => all.cast(DType::F32),
            Self::Eight(kept) => {
                let Eight { words, scales, dim } = kept;
                let [heads, positions, of_position] = words.dims();
                // Each shift brings one value of every word to the top, and the second one, of the sign too, to the bottom.
                let parts = (0..OF_WORD as i32).map(|part| {
                    let top = words.clone().bitwise_left_shift_scalar(24 - 8 * part);
                    top.bitwise_right_shift_scalar(24).reshape([heads, positions, of_position, 1])
                });
                let values = Dispatched::<4, Int>::cat(parts.collect(), 3).float().cast(DType::F32);
                values.reshape([heads, positions, of_position * OF_WORD]).narrow(2, 0, dim) * scales
            }
        }
    }
}

/// Values `[key_heads, n, dim]` in words, and the scales of their positions. The largest of a position becomes 127; a position with a value that is
/// not finite has a scale that is not.
fn rounded(values: Tensor<3>) -> (Dispatched<3, Int>, Tensor<3>) {
    let [heads, count, dim] = values.dims();
    let scales = values.clone().abs().max_dim(2) / 127.0;
    // Of nothing, nothing is left.
    let numbers = (values / scales.clone().clamp_min(f32::MIN_POSITIVE)).round();
    let of_position = dim.div_ceil(OF_WORD);
    let missing = of_position * OF_WORD - dim;
    let numbers = if missing > 0 {
        let zeros = Tensor::zeros([heads, count, missing], (&numbers.device(), DType::F32));
        Tensor::cat(vec![numbers, zeros], 2)
    } else {
        numbers
    };
    let numbers = numbers.cast(IntDType::I32).reshape([heads, count, of_position, OF_WORD]);
    let part = |part: usize| {
        let bytes = numbers.clone().narrow(3, part, 1).bitwise_and_scalar(255);
        bytes.bitwise_left_shift_scalar(8 * part as i32)
    };
    let words = (1..OF_WORD).fold(part(0), |words, next| words.bitwise_or(part(next)));
    (words.reshape([heads, count, of_position]), scales)
}
