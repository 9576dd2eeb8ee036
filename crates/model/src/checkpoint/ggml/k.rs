//! Blocks of 256 values in parts, each with a scale in a few bits, and scales of those.

use super::{FITTED, half};

/// Two bits of value `number`: of each 128 values the bytes have first the lowest bits of 32, then those above them.
fn two_bits(bytes: &[u8], number: usize) -> u8 {
    bytes[number / 128 * 32 + number % 32] >> (number % 128 / 32 * 2) & 3
}

/// Four bits of value `number`: of each `2 · run` values the bytes have first the lower halves of `run`, then the upper ones.
fn four_bits(bytes: &[u8], number: usize, run: usize) -> u8 {
    bytes[number / (2 * run) * run + number % run] >> (number % (2 * run) / run * 4) & 15
}

/// One bit of value `number`: of all 256 the bytes have the lowest bits of 32, and so on.
fn one_bit(bytes: &[u8], number: usize) -> u8 {
    bytes[number % 32] >> (number / 32) & 1
}

/// Scale and least value of part `part` of Q4_K and Q5_K, six bits each.
fn scale_and_least(bytes: &[u8], part: usize) -> [f32; 2] {
    let [scale, least] = match part.checked_sub(4) {
        None => [bytes[part] & 63, bytes[part + 4] & 63],
        Some(part) => {
            let rest = bytes[part + 8];
            [rest & 15 | bytes[part] >> 2 & 48, rest >> 4 | bytes[part + 4] >> 2 & 48]
        }
    };
    [f32::from(scale), f32::from(least)]
}

/// Calls for each part of `size` values, with the number of its first value.
fn parts(out: &mut [f32], size: usize, mut part: impl FnMut(usize, usize, &mut [f32])) {
    out.chunks_exact_mut(size).enumerate().for_each(|(number, values)| part(number, number * size, values));
}

pub(super) fn q2(block: &[u8], out: &mut [f32]) {
    let (scales, bits) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    parts(out, 16, |part, first, values| {
        let (scale, least) = (scale * f32::from(scales[part] & 15), least * f32::from(scales[part] >> 4));
        for (number, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(two_bits(bits, first + number)) - least;
        }
    });
}

pub(super) fn q3(block: &[u8], out: &mut [f32]) {
    let (highest, bits, scales, scale) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    parts(out, 16, |part, first, values| {
        let low = if part < 8 { scales[part] & 15 } else { scales[part - 8] >> 4 };
        let own = low | (scales[8 + part % 4] >> (part / 4 * 2) & 3) << 4;
        let scale = scale * f32::from(own as i8 - 32);
        for (number, value) in values.iter_mut().enumerate() {
            let number = first + number;
            // Four is taken away where the bit is not there.
            let bits = two_bits(bits, number) as i8 - ((one_bit(highest, number) ^ 1) << 2) as i8;
            *value = scale * f32::from(bits);
        }
    });
}

/// What each part's values are multiplied by, and what is added then.
pub(super) fn scales_and_offsets_of_q4(block: &[u8]) -> [[f32; 2]; 8] {
    let (scale, least, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    std::array::from_fn(|part| {
        let [own, down] = scale_and_least(scales, part);
        [scale * own, -(least * down)]
    })
}

pub(super) fn q4(block: &[u8], out: &mut [f32]) {
    let (affine, bits) = (scales_and_offsets_of_q4(block), &block[16..144]);
    parts(out, 32, |part, first, values| {
        let [scale, offset] = affine[part];
        for (number, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(four_bits(bits, first + number, 32)) + offset;
        }
    });
}

pub(super) fn q5(block: &[u8], out: &mut [f32]) {
    let (scale, least, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    let (highest, bits) = (&block[16..48], &block[48..176]);
    parts(out, 32, |part, first, values| {
        let [own, down] = scale_and_least(scales, part);
        let (scale, least) = (scale * own, least * down);
        for (number, value) in values.iter_mut().enumerate() {
            let number = first + number;
            let bits = four_bits(bits, number, 32) | one_bit(highest, number) << 4;
            *value = scale * f32::from(bits) - least;
        }
    });
}

pub(super) fn q6(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, scale) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    parts(out, 16, |part, first, values| {
        let scale = scale * f32::from(scales[part] as i8);
        for (number, value) in values.iter_mut().enumerate() {
            let number = first + number;
            let bits = four_bits(low, number, 64) | two_bits(high, number) << 4;
            *value = scale * f32::from(bits as i8 - 32);
        }
    });
}

pub(super) fn iq4(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let (highest, low, bits) = (u16::from_le_bytes([block[2], block[3]]), &block[4..8], &block[8..136]);
    parts(out, 32, |part, first, values| {
        let own = low[part / 2] >> (part % 2 * 4) & 15 | ((highest >> (2 * part) & 3) as u8) << 4;
        let scale = scale * f32::from(own as i8 - 32);
        for (number, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(FITTED[usize::from(four_bits(bits, first + number, 16))]);
        }
    });
}
