//! Rounding to bf16.

/// The bits of the nearest bf16, of two the even one, without branches. NaN stays NaN.
#[inline(always)]
pub(in crate::engine::host) fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let kept = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { kept } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let values = (0..=u16::MAX).flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| (high, low)));
        for (high, low) in values {
            let value = f32::from_bits(u32::from(high) << 16 | low);
            let (got, expected) = (bf16::from_bits(round_to_bf16(value)), bf16::from_f32(value));
            assert!(got == expected || got.is_nan() && expected.is_nan(), "{value}: {got}");
        }
    }
}
