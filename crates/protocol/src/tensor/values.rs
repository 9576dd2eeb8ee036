//! The bytes of a tensor's values in each dtype (docs/protocol.md).
//!
//! Every activation and gradient of a step passes here twice, so each direction is one pass without branches, written so
//! that the compiler vectorises it.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::WireDtype;

/// Values that share a scale in [`WireDtype::Int8`]; the last block of a tensor may be shorter.
pub(super) const BLOCK: usize = 64;
/// Bytes of a block's scale, a bfloat16.
pub(super) const SCALE_LEN: usize = 2;
/// Bytes of the exponent, an `i16`, in front of the values of [`WireDtype::F16`].
pub(super) const EXPONENT_LEN: usize = 2;

/// Exponents that a sender of f16 chooses from: `2^e` and `2^-e` are normal numbers, and so is the largest value.
const EXPONENTS: std::ops::RangeInclusive<i16> = -126..=113;
/// The largest value of an f16 tensor is brought to `2^14..2^15`: f16 can hold it, and values down to `2^-38` of it do not
/// vanish.
const F16_TOP: i16 = 14;
/// The largest f16 below `2^15`. What rounds to more would be infinite as an f32 where the exponent is the largest.
const F16_LARGEST: f32 = 32_752.0;
/// Values converted at a time where a conversion needs a buffer.
const CHUNK: usize = 256;

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7f80_0000;

/// Why bytes of the right number are not values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueError {
    Exponent(i16),
    /// The value at this place is NaN or infinite.
    NotFinite(usize),
}

pub(super) fn encode(dtype: WireDtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        WireDtype::F32 if cfg!(target_endian = "little") => bytemuck::cast_slice(values).to_vec(),
        WireDtype::F32 => narrow(values, |value| value.to_le_bytes()),
        WireDtype::F16 => encode_f16(values),
        WireDtype::Bf16 => narrow(values, |value| to_bf16(value).to_le_bytes()),
        WireDtype::Int8 => encode_int8(values),
    }
}

/// Decodes bytes whose number [`WireDtype::byte_len`] has approved.
pub(super) fn decode(dtype: WireDtype, bytes: &[u8]) -> Result<Vec<f32>, ValueError> {
    match dtype {
        WireDtype::F32 => widen(bytes, f32::from_le_bytes),
        WireDtype::F16 => decode_f16(bytes),
        WireDtype::Bf16 => widen(bytes, |two| f32::from_bits(u32::from(u16::from_le_bytes(two)) << 16)),
        WireDtype::Int8 => decode_int8(bytes),
    }
}

fn narrow<const N: usize>(values: &[f32], one: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; N * values.len()];
    for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = one(value);
    }
    bytes
}

fn widen<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f32) -> Result<Vec<f32>, ValueError> {
    let items = bytes.as_chunks().0;
    let mut values = vec![0.0; items.len()];
    let mut marks = 0;
    for (value, &item) in values.iter_mut().zip(items) {
        *value = one(item);
        marks |= mark(*value);
    }
    checked(values, marks)
}

/// Sets the sign bit exactly if `value` is NaN or infinite. Marks of many values are combined by `|`.
fn mark(value: f32) -> u32 {
    (value.to_bits() & !SIGN).wrapping_add(0x0080_0000)
}

fn checked(values: Vec<f32>, marks: u32) -> Result<Vec<f32>, ValueError> {
    if marks & SIGN == 0 {
        return Ok(values);
    }
    Err(ValueError::NotFinite(values.iter().position(|value| !value.is_finite()).unwrap_or_default()))
}

/// The bits of the largest magnitude; NaN counts as larger than infinity.
fn largest_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, value| largest.max(value.to_bits() & !SIGN))
}

/// Rounds to nearest, ties to even. NaN stays NaN.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // The carry could make anything of a NaN.
    let kept = bits | 0x0040_0000;
    ((if bits & !SIGN > INFINITY { kept } else { rounded }) >> 16) as u16
}

/// `2^exponent` for exponents of normal numbers.
fn power_of_two(exponent: i16) -> f32 {
    f32::from_bits(((i32::from(exponent) + 127) as u32) << 23)
}

/// `e` for values `f16 * 2^e` whose largest has the magnitude of these bits.
fn exponent_for(largest: u32) -> i16 {
    if largest == 0 || largest >= INFINITY {
        return 0;
    }
    let exponent = (largest >> 23) as i16 - 127;
    (exponent - F16_TOP).clamp(*EXPONENTS.start(), *EXPONENTS.end())
}

fn encode_f16(values: &[f32]) -> Vec<u8> {
    let largest = largest_bits(values);
    let exponent = exponent_for(largest);
    let scale = power_of_two(-exponent);
    // What is not finite stays so, and is refused by whoever reads it.
    let limit = if largest < INFINITY { F16_LARGEST } else { f32::INFINITY };
    let mut bytes = Vec::with_capacity(EXPONENT_LEN + 2 * values.len());
    bytes.extend_from_slice(&exponent.to_le_bytes());
    let (mut scaled, mut halves) = ([0.0; CHUNK], [f16::ZERO; CHUNK]);
    for chunk in values.chunks(CHUNK) {
        let (scaled, halves) = (&mut scaled[..chunk.len()], &mut halves[..chunk.len()]);
        scaled.iter_mut().zip(chunk).for_each(|(scaled, value)| *scaled = (value * scale).clamp(-limit, limit));
        halves.convert_from_f32_slice(scaled);
        bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    }
    bytes
}

fn decode_f16(bytes: &[u8]) -> Result<Vec<f32>, ValueError> {
    let Some((&exponent, bytes)) = bytes.split_first_chunk() else { return Ok(Vec::new()) };
    let exponent = i16::from_le_bytes(exponent);
    if !EXPONENTS.contains(&exponent) {
        return Err(ValueError::Exponent(exponent));
    }
    let scale = power_of_two(exponent);
    let items = bytes.as_chunks().0;
    let mut values = vec![0.0; items.len()];
    let (mut marks, mut halves) = (0, [f16::ZERO; CHUNK]);
    for (values, items) in values.chunks_mut(CHUNK).zip(items.chunks(CHUNK)) {
        let halves = &mut halves[..items.len()];
        halves.iter_mut().zip(items).for_each(|(half, &item)| *half = f16::from_le_bytes(item));
        halves.convert_to_f32_slice(values);
        for value in values {
            *value *= scale;
            marks |= mark(*value);
        }
    }
    checked(values, marks)
}

/// The scale of a block whose largest magnitude has these bits: that over 127, rounded up to a bfloat16 so that no value
/// exceeds 127. Zero, a normal number, or not finite.
fn scale_for(largest: u32) -> f32 {
    if largest == 0 {
        return 0.0;
    }
    // Subnormal scales have no reciprocal; values so small become zeros and lose nothing that anybody could see.
    let scale = (f32::from_bits(largest) / 127.0).max(f32::MIN_POSITIVE);
    // `max` hides a NaN.
    let bits = if largest > INFINITY { f32::NAN.to_bits() } else { scale.to_bits() };
    f32::from_bits((bits + 0xffff) & 0xffff_0000)
}

fn encode_int8(values: &[f32]) -> Vec<u8> {
    let scales_len = SCALE_LEN * values.len().div_ceil(BLOCK);
    let mut bytes = vec![0; scales_len + values.len()];
    let (scales, integers) = bytes.split_at_mut(scales_len);
    let blocks = values.chunks(BLOCK).zip(integers.chunks_mut(BLOCK));
    for ((values, integers), bytes) in blocks.zip(scales.as_chunks_mut().0) {
        let scale = scale_for(largest_bits(values));
        *bytes = ((scale.to_bits() >> 16) as u16).to_le_bytes();
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the lowest bits.
        let rounded = |value: f32| (value * inverse + 12_582_912.0).to_bits() as u8;
        integers.iter_mut().zip(values).for_each(|(integer, &value)| *integer = rounded(value));
    }
    bytes
}

fn decode_int8(bytes: &[u8]) -> Result<Vec<f32>, ValueError> {
    let (scales, integers) = bytes.split_at(scales_len(bytes.len()));
    let mut values = vec![0.0; integers.len()];
    let blocks = values.chunks_mut(BLOCK).zip(integers.chunks(BLOCK));
    for (number, ((values, integers), &scale)) in blocks.zip(scales.as_chunks().0).enumerate() {
        let scale = f32::from_bits(u32::from(u16::from_le_bytes(scale)) << 16);
        if !(scale * 128.0).is_finite() {
            return Err(ValueError::NotFinite(number * BLOCK));
        }
        values.iter_mut().zip(integers).for_each(|(value, &integer)| *value = f32::from(integer as i8) * scale);
    }
    Ok(values)
}

/// Bytes of the scales among `all` bytes of a tensor.
fn scales_len(all: usize) -> usize {
    SCALE_LEN * all.div_ceil(BLOCK + SCALE_LEN)
}
