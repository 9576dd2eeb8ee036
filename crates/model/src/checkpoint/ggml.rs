//! Tensor types whose values lie in blocks with a common scale, after ggml's `ggml-quants.c`; what comes out has the bits that
//! `gguf.quants.dequantize` of gguf-py gives.

use half::f16;

use super::blocks::{BLOCK as SMALL, FITTED};
use super::fp4;

mod columns;
mod k;

/// A type of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Values of blocks with scales of scales.
const LARGE: usize = 256;

/// The types that are read, with the values and bytes of a block.
const FORMATS: [(&str, BlockFormat, usize, usize); 13] = [
    ("Q4_0", BlockFormat::Q4_0, SMALL, 18),
    ("Q4_1", BlockFormat::Q4_1, SMALL, 20),
    ("Q5_0", BlockFormat::Q5_0, SMALL, 22),
    ("Q5_1", BlockFormat::Q5_1, SMALL, 24),
    ("Q8_0", BlockFormat::Q8_0, SMALL, 34),
    ("Q2_K", BlockFormat::Q2K, LARGE, 84),
    ("Q3_K", BlockFormat::Q3K, LARGE, 110),
    ("Q4_K", BlockFormat::Q4K, LARGE, 144),
    ("Q5_K", BlockFormat::Q5K, LARGE, 176),
    ("Q6_K", BlockFormat::Q6K, LARGE, 210),
    ("IQ4_NL", BlockFormat::Iq4Nl, SMALL, 18),
    ("IQ4_XS", BlockFormat::Iq4Xs, LARGE, 136),
    ("MXFP4", BlockFormat::Mxfp4, SMALL, 17),
];

/// Names of ggml's types by their numbers; those without a name are of no file of today.
const TYPES: [(u32, &str); 34] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// The name of a type by its number.
pub(super) fn type_name(kind: u32) -> Option<&'static str> {
    TYPES.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

impl BlockFormat {
    /// The one of a name of ggml's, if it is read.
    pub(crate) fn named(name: &str) -> Option<Self> {
        FORMATS.iter().find(|format| format.0 == name).map(|format| format.1)
    }

    /// Its name in ggml.
    pub(crate) fn name(self) -> &'static str {
        FORMATS.iter().find(|format| format.1 == self).map_or("", |format| format.0)
    }

    /// The names of all.
    pub(crate) fn names() -> String {
        FORMATS.map(|format| format.0).join(", ")
    }

    /// Values and bytes of a block.
    pub(crate) fn extents(self) -> [usize; 2] {
        let found = FORMATS.iter().find(|format| format.1 == self);
        found.map_or([1, 1], |format| [format.2, format.3])
    }

    /// Decodes whole blocks.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let [values, size] = self.extents();
        for (out, block) in out.chunks_exact_mut(values).zip(bytes.chunks_exact(size)) {
            self.decode_block(block, out);
        }
    }

    fn decode_block(self, block: &[u8], out: &mut [f32]) {
        match self {
            Self::Q4_0 => {
                let scale = half(block, 0);
                nibbles(&block[2..], out, |bits| scale * f32::from(bits as i8 - 8));
            }
            Self::Q4_1 => {
                let (scale, least) = (half(block, 0), half(block, 2));
                nibbles(&block[4..], out, |bits| scale * f32::from(bits) + least);
            }
            Self::Q5_0 => {
                let scale = half(block, 0);
                fifths(&block[2..], out, |bits| scale * f32::from(bits as i8 - 16));
            }
            Self::Q5_1 => {
                let (scale, least) = (half(block, 0), half(block, 2));
                fifths(&block[4..], out, |bits| scale * f32::from(bits) + least);
            }
            Self::Q8_0 => {
                let scale = half(block, 0);
                out.iter_mut().zip(&block[2..]).for_each(|(value, bits)| *value = f32::from(*bits as i8) * scale);
            }
            Self::Iq4Nl => {
                let scale = half(block, 0);
                nibbles(&block[2..], out, |bits| scale * f32::from(FITTED[usize::from(bits)]));
            }
            Self::Mxfp4 => {
                let scale = fp4::half_scale(block[0]);
                nibbles(&block[1..], out, |bits| scale * f32::from(fp4::DOUBLED[usize::from(bits)]));
            }
            Self::Q2K => k::q2(block, out),
            Self::Q3K => k::q3(block, out),
            Self::Q4K => k::q4(block, out),
            Self::Q5K => k::q5(block, out),
            Self::Q6K => k::q6(block, out),
            Self::Iq4Xs => k::iq4(block, out),
        }
    }
}

/// The number in half precision at `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The lower halves of 16 bytes, then the upper ones.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(SMALL / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

/// The same with a fifth bit of each, which the first four bytes have.
fn fifths(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fifth = |number: usize| ((bits >> number & 1) as u8) << 4;
    let (low, high) = out.split_at_mut(SMALL / 2);
    for (number, ((low, high), byte)) in low.iter_mut().zip(high).zip(&bytes[4..]).enumerate() {
        *low = value(byte & 15 | fifth(number));
        *high = value(byte >> 4 | fifth(number + SMALL / 2));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn hexadecimal(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    /// Random blocks of a type, and the bits of the values that gguf-py makes of them.
    pub(super) fn golden(format: BlockFormat) -> (Vec<u8>, Vec<u32>) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/data/gguf-blocks.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        let [bytes, values] =
            ["bytes", "values"].map(|what| hexadecimal(golden[format.name()][what].as_str().unwrap()));
        (bytes, values.as_chunks().0.iter().map(|&bits| u32::from_le_bytes(bits)).collect())
    }

    #[test]
    fn values_are_those_of_gguf_py() {
        for (name, format, values, size) in FORMATS {
            let (bytes, expected) = golden(format);
            assert!(bytes.len() / size > 2 && expected.len() == bytes.len() / size * values, "{name}");
            let mut out = vec![0.0; expected.len()];
            format.decode(&bytes, &mut out);
            assert_eq!(out.into_iter().map(f32::to_bits).collect::<Vec<_>>(), expected, "{name}");
        }
    }
}
