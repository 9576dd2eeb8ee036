//! The numbers of MXFP4 (OCP Microscaling Formats 1.0), which Hugging Face and llama.cpp pack differently: a sign, two bits of exponent and one of
//! mantissa, and a power of two for each block.

use half::f16;

use super::blocks::Table;

/// What four bits stand for, doubled, in whole numbers.
pub(super) const DOUBLED: Table = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// What four bits stand for. The zero of the upper half is the negative one.
pub(super) const VALUES: [f32; 16] = {
    let mut values = [0.0; 16];
    let mut number = 0;
    while number < values.len() {
        let magnitude = DOUBLED[number % 8] as f32 / 2.0;
        values[number] = if number < 8 { magnitude } else { -magnitude };
        number += 1;
    }
    values
};

/// Half of the scale that eight bits stand for, which belongs to [`DOUBLED`]: 2^(bits - 128).
pub(super) fn half_scale(bits: u8) -> f32 {
    // The two least ones are no normal numbers.
    f32::from_bits(if bits < 2 { 0x0020_0000 << bits } else { u32::from(bits - 1) << 23 })
}

/// The same in f16, if it has it.
pub(super) fn half(bits: u8) -> Option<f16> {
    (104..=143).contains(&bits).then(|| f16::from_f32(half_scale(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_has_the_halves_that_it_is_said_to_have() {
        for bits in 0..=255 {
            let (exact, rounded) = (half_scale(bits), f16::from_f32(half_scale(bits)));
            assert_eq!(half(bits), (rounded.to_f32() == exact).then_some(rounded), "{bits}");
            assert_eq!(f64::from(exact), (f64::from(bits) - 128.0).exp2(), "{bits}");
        }
    }
}
