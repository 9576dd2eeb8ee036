//! Blocks that engines have as well ([`Column`]): which these are, and how they are taken over without rounding.

use half::f16;

use super::super::blocks::{Bits, Column, EVEN, FITTED};
use super::super::fp4;
use super::BlockFormat;

impl BlockFormat {
    /// Of how many bits the blocks in `bytes` are, if engines can have them as they lie.
    pub(crate) fn bits(self, bytes: &[u8]) -> Option<Bits> {
        let [_, size] = self.extents();
        match self {
            Self::Q8_0 => Some(Bits::Eight),
            Self::Q4_0 => Some(Bits::Four(EVEN)),
            Self::Iq4Nl => Some(Bits::Four(FITTED)),
            Self::Q4_1 | Self::Q4K => {
                let fit = |block: &[u8]| match (self, super::half(block, 0), super::half(block, 2)) {
                    // What is taken away, and both are multiplied by six bits: f16 is to have the products.
                    (Self::Q4K, scale, least) => (0.0..1e3).contains(&scale) && (0.0..1e3).contains(&least),
                    (_, scale, offset) => scale >= 0.0 && offset <= 0.0,
                };
                bytes.chunks_exact(size).all(fit).then_some(Bits::Offset)
            }
            // Its scales are powers of two, of which f16 has some.
            Self::Mxfp4 => {
                let fit = bytes.chunks_exact(size).all(|block| fp4::half(block[0]).is_some());
                fit.then_some(Bits::Four(fp4::DOUBLED))
            }
            _ => None,
        }
    }

    /// The blocks in `bytes` as they lie, if [`Self::bits`] says that they can be had; scales and offsets of `Q4_K` as f16.
    pub(crate) fn blocks_of(self, bytes: &[u8], to: &mut Column) {
        let [_, size] = self.extents();
        to.clear();
        for block in bytes.chunks_exact(size) {
            let f16_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
            let values = match self {
                Self::Mxfp4 => {
                    to.scales.extend(fp4::half(block[0]));
                    &block[1..]
                }
                Self::Q4_1 => {
                    to.scales.push(f16_at(0));
                    to.offsets.push(f16_at(2));
                    &block[4..]
                }
                Self::Q4K => {
                    let parts = super::k::scales_and_offsets_of_q4(block);
                    to.scales.extend(parts.map(|[scale, _]| f16::from_f32(scale)));
                    to.offsets.extend(parts.map(|[_, offset]| f16::from_f32(offset)));
                    &block[16..]
                }
                _ => {
                    to.scales.push(f16_at(0));
                    &block[2..]
                }
            };
            if self == Self::Q8_0 {
                to.values.extend(values.iter().map(|value| value.cast_signed()));
                continue;
            }
            // The lower halves of a run of bytes, then the upper ones.
            for run in values.chunks(if self == Self::Q4K { 32 } else { 16 }) {
                to.values.extend(run.iter().map(|pair| (pair & 15).cast_signed()));
                to.values.extend(run.iter().map(|pair| (pair >> 4).cast_signed()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::golden;
    use super::*;

    #[test]
    fn blocks_taken_over_stand_for_the_values_of_gguf_py() {
        let formats = [
            BlockFormat::Q8_0,
            BlockFormat::Q4_0,
            BlockFormat::Iq4Nl,
            BlockFormat::Mxfp4,
            BlockFormat::Q4_1,
            BlockFormat::Q4K,
        ];
        for format in formats {
            let [_, size] = format.extents();
            let (mut blocks, mut expected) = golden(format);
            if format == BlockFormat::Mxfp4 {
                assert_eq!(format.bits(&blocks), None, "scales are random, and f16 has few of them");
                blocks.chunks_exact_mut(size).zip(104..=143).for_each(|(block, scale)| block[0] = scale);
                let mut values = vec![0.0; expected.len()];
                format.decode(&blocks, &mut values);
                expected = values.into_iter().map(f32::to_bits).collect();
            }
            if matches!(format, BlockFormat::Q4_1 | BlockFormat::Q4K) {
                assert_eq!(format.bits(&blocks), None, "halves are random, and have the wrong signs");
                let sign = if format == BlockFormat::Q4_1 { 0x80 } else { 0 };
                for block in blocks.chunks_exact_mut(size) {
                    (block[1], block[3]) = (block[1] & 0x3f, block[3] & 0x3f | sign);
                }
                let mut values = vec![0.0; expected.len()];
                format.decode(&blocks, &mut values);
                expected = values.into_iter().map(f32::to_bits).collect();
            }
            let bits = format.bits(&blocks).unwrap();
            assert!(blocks.len() / size > 2, "{format:?}");
            let mut column = Column { scales: vec![f16::ONE], offsets: vec![f16::ONE], values: vec![1] };
            format.blocks_of(&blocks, &mut column);
            assert_eq!(column.scales.len() * 32, column.values.len(), "{format:?}");
            for (at, expected) in expected.iter().map(|bits| f32::from_bits(*bits)).enumerate() {
                // Scales and offsets of `Q4_K` are products, of which f16 has the nearest.
                let exact = format != BlockFormat::Q4K;
                let most = if exact { 0.0 } else { column.offsets[at / 32].to_f32().abs().max(expected.abs()) / 512.0 };
                let found = column.value(bits, at);
                assert!((found - expected).abs() <= most, "{format:?}, value {at}: {found} {expected}");
            }
        }
    }

    #[test]
    fn other_blocks_are_no_blocks_of_engines() {
        for format in [BlockFormat::Q5_0, BlockFormat::Q5K, BlockFormat::Q6K, BlockFormat::Iq4Xs] {
            assert_eq!(format.bits(&golden(format).0), None, "{format:?}");
        }
    }
}
