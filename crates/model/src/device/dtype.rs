//! How weights are kept.

use std::fmt;
use std::str::FromStr;

use super::Device;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use super::Kind;

/// How block weights are kept.
///
/// Everything but the weights is f32: they stay as they are in memory and are widened in registers, and sums are f32 always.
///
/// Eight and four bits are blocks of 32 weights that have one scale, an f16, as llama.cpp's `Q8_0` and `IQ4_NL`. The products of a few rows round these rows to eight bits
/// as well, 32 values at a time. Routers of mixtures stay f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// bf16 on GPUs, f32 elsewhere.
    #[default]
    Auto,
    /// IEEE 754 single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// Eight bits and a sixteenth of a scale: 8.5 bits a weight.
    Int8,
    /// Four bits, which number the entries of a table, and a scale: 4.5 bits a weight.
    Int4,
}

impl Dtype {
    /// Every dtype that weights can be kept in, the widest first.
    pub const KEPT: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Int4];

    /// What [`Dtype::Auto`] stands for on `device`; the others stand for themselves.
    pub fn on(self, device: &Device) -> Self {
        match self {
            Self::Auto => match device.kind() {
                #[cfg(feature = "cuda")]
                Kind::Cuda(_) => Self::Bf16,
                #[cfg(feature = "vulkan")]
                Kind::Vulkan(adapter) if !adapter.is_software() => Self::Bf16,
                _ => Self::F32,
            },
            chosen => chosen,
        }
    }

    /// Bytes of so many weights, in whole blocks where they are in blocks. [`Dtype::Auto`] counts as f32.
    pub fn bytes(self, weights: u64) -> u64 {
        let blocks = weights.div_ceil(32);
        match self {
            Self::Auto | Self::F32 => weights.saturating_mul(4),
            Self::Bf16 | Self::F16 => weights.saturating_mul(2),
            Self::Int8 => blocks.saturating_mul(32 + 2),
            Self::Int4 => blocks.saturating_mul(16 + 2),
        }
    }

    /// Whether weights are in blocks with scales.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// What small matrices are kept in on which much depends: routers.
    pub(crate) fn of_routers(self) -> Self {
        if self.is_quantised() { Self::F32 } else { self }
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(format!("`{text}` is not a dtype: use auto, f32, bf16, f16, int8 or int4")),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_f32_on_the_cpu() {
        assert_eq!("auto".parse::<Dtype>().unwrap().on(&Device::cpu()), Dtype::F32);
        assert_eq!(Dtype::Bf16.on(&Device::cpu()), Dtype::Bf16);
        assert!("int3".parse::<Dtype>().unwrap_err().contains("int4"));
        assert!(Dtype::KEPT.iter().all(|dtype| dtype.to_string().parse() == Ok(*dtype)));
    }

    #[test]
    fn bits_of_a_weight_are_those_that_are_stated() {
        let bits = Dtype::KEPT.map(|dtype| dtype.bytes(1 << 20) as f64 * 8.0 / f64::from(1 << 20));
        assert_eq!(bits, [32.0, 16.0, 16.0, 8.5, 4.5]);
    }
}
