//! How numbers are encoded in files.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::ggml::BlockFormat;

/// How a tensor's values are encoded in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileDtype {
    F32,
    Bf16,
    F16,
    /// Four bits of exponent, three of mantissa, no infinities (OCP 8-bit Floating Point 1.0; torch's `float8_e4m3fn`).
    F8E4m3,
    I64,
    /// Most often several packed values.
    I32,
    I8,
    /// Bytes of packed weights, which are no numbers by themselves.
    U8,
    /// Blocks with scales, of which rows are whole numbers; of GGUF alone.
    Block(BlockFormat),
}

/// What weights that are not quantised are saved in.
pub(crate) const FLOATS: &[FileDtype] = &[FileDtype::F32, FileDtype::Bf16, FileDtype::F16];

/// The values of all codes of [`FileDtype::F8E4m3`].
const E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < values.len() {
        values[code] = e4m3(code as u32);
        code += 1;
    }
    values
};

const fn e4m3(code: u32) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7 << 31, code >> 3 & 15, code & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN.to_bits(),
        // Multiples of 2^-9, which f32 has exactly.
        (0, _) => (mantissa as f32 / 512.0).to_bits(),
        // The bias is 7 here and 127 there.
        _ => (exponent + 120) << 23 | mantissa << 20,
    };
    f32::from_bits(sign | magnitude)
}

impl FileDtype {
    const ALL: [(Self, &'static str); 8] = [
        (Self::F32, "F32"),
        (Self::Bf16, "BF16"),
        (Self::F16, "F16"),
        (Self::F8E4m3, "F8_E4M3"),
        (Self::I64, "I64"),
        (Self::I32, "I32"),
        (Self::I8, "I8"),
        (Self::U8, "U8"),
    ];

    /// The dtype that a header calls `name`, if it is one that is read.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let plain = Self::ALL.iter().find(|(_, own)| *own == name).map(|(dtype, _)| *dtype);
        plain.or_else(|| BlockFormat::named(name).map(Self::Block))
    }

    /// Its name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Block(format) => format.name(),
            plain => Self::ALL.iter().find(|(dtype, _)| *dtype == plain).map_or("", |(_, name)| name),
        }
    }

    /// Whether weights that are not quantised may be of it.
    pub(crate) fn is_float(self) -> bool {
        FLOATS.contains(&self)
    }

    /// How many values lie together, and in how many bytes: one, or those of a block.
    pub(crate) fn extents(self) -> [usize; 2] {
        match self {
            Self::I64 => [1, 8],
            Self::F32 | Self::I32 => [1, 4],
            Self::Bf16 | Self::F16 => [1, 2],
            Self::F8E4m3 | Self::I8 | Self::U8 => [1, 1],
            Self::Block(format) => format.extents(),
        }
    }

    /// Bytes of as many values, which are whole blocks.
    pub(crate) fn bytes(self, values: usize) -> usize {
        let [together, size] = self.extents();
        values / together * size
    }

    /// Decodes little-endian `bytes` to as many values as `out` has.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = f32::from_le_bytes(b)),
            Self::U8 => out.iter_mut().zip(bytes).for_each(|(v, &b)| *v = f32::from(b)),
            Self::I8 => out.iter_mut().zip(bytes).for_each(|(v, &b)| *v = f32::from(b.cast_signed())),
            Self::F8E4m3 => out.iter_mut().zip(bytes).for_each(|(v, &b)| *v = E4M3[usize::from(b)]),
            Self::I32 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = i32::from_le_bytes(b) as f32),
            Self::I64 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = i64::from_le_bytes(b) as f32),
            Self::Block(format) => format.decode(bytes, out),
            // The upper half of an f32: nothing but a shift, which compilers vectorise.
            Self::Bf16 => out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| {
                *v = f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
            }),
            Self::F16 if out.len() == 1 => {
                out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, &b)| *v = f16::from_le_bytes(b).to_f32());
            }
            Self::F16 => {
                let mut halves = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                    let halves = &mut halves[..out.len()];
                    halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(half, &b)| *half = f16::from_le_bytes(b));
                    halves.convert_to_f32_slice(out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_are_known_by_their_names() {
        for (dtype, name) in FileDtype::ALL {
            assert_eq!(FileDtype::named(name), Some(dtype));
            assert_eq!(dtype.name(), name);
        }
        for name in BlockFormat::names().split(", ") {
            assert_eq!(FileDtype::named(name).map(FileDtype::name), Some(name));
        }
        assert_eq!(FileDtype::named("F64"), None);
    }

    #[test]
    fn eight_bits_of_float_have_their_least_and_largest_values() {
        let value = |code: u8| E4M3[usize::from(code)];
        assert_eq!([value(0x7e), value(0xfe), value(0x01), value(0x08)], [448.0, -448.0, 1.0 / 512.0, 1.0 / 64.0]);
        assert_eq!([value(0x38), value(0xb8), value(0x80)], [1.0, -1.0, 0.0]);
        assert!(value(0x80).is_sign_negative() && value(0x7f).is_nan() && value(0xff).is_nan());
    }
}
