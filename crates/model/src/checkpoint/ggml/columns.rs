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
            // Its scales are powers of two, of which f16 has some.
            Self::Mxfp4 => {
                let fit = bytes.chunks_exact(size).all(|block| fp4::half(block[0]).is_some());
                fit.then_some(Bits::Four(fp4::DOUBLED))
            }
            _ => None,
        }
    }

    /// The blocks in `bytes` as they lie, if [`Self::bits`] says that they can be had.
    pub(crate) fn blocks_of(self, bytes: &[u8], to: &mut Column) {
        let [_, size] = self.extents();
        to.scales.clear();
        to.values.clear();
        for block in bytes.chunks_exact(size) {
            let (scale, values) = match self {
                Self::Mxfp4 => (fp4::half(block[0]), &block[1..]),
                _ => (Some(f16::from_le_bytes([block[0], block[1]])), &block[2..]),
            };
            to.scales.extend(scale);
            match self {
                Self::Q8_0 => to.values.extend(values.iter().map(|value| value.cast_signed())),
                _ => {
                    to.values.extend(values.iter().map(|pair| (pair & 15).cast_signed()));
                    to.values.extend(values.iter().map(|pair| (pair >> 4).cast_signed()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::golden;
    use super::*;

    /// What a column stands for.
    fn widened(bits: Bits, column: &Column) -> Vec<u32> {
        let value = |(number, value): (usize, &i8)| {
            let unit = match bits {
                Bits::Eight => *value,
                Bits::Four(table) => table[usize::from(value.cast_unsigned())],
            };
            (column.scales[number / 32].to_f32() * f32::from(unit)).to_bits()
        };
        column.values.iter().enumerate().map(value).collect()
    }

    #[test]
    fn blocks_taken_over_stand_for_the_values_of_gguf_py() {
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Iq4Nl, BlockFormat::Mxfp4] {
            let [_, size] = format.extents();
            let (mut blocks, mut expected) = golden(format);
            if format == BlockFormat::Mxfp4 {
                assert_eq!(format.bits(&blocks), None, "scales are random, and f16 has few of them");
                blocks.chunks_exact_mut(size).zip(104..=143).for_each(|(block, scale)| block[0] = scale);
                let mut values = vec![0.0; expected.len()];
                format.decode(&blocks, &mut values);
                expected = values.into_iter().map(f32::to_bits).collect();
            }
            let bits = format.bits(&blocks).unwrap();
            assert!(blocks.len() / size > 2, "{format:?}");
            let mut column = Column { scales: vec![f16::ONE], values: vec![1] };
            format.blocks_of(&blocks, &mut column);
            assert_eq!(column.scales.len() * 32, column.values.len(), "{format:?}");
            assert_eq!(widened(bits, &column), expected, "{format:?}");
        }
    }

    #[test]
    fn other_blocks_are_no_blocks_of_engines() {
        for format in [BlockFormat::Q4_1, BlockFormat::Q5_0, BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::Iq4Xs] {
            assert_eq!(format.bits(&golden(format).0), None, "{format:?}");
        }
    }
}
