//! How keys and values of sessions are kept.

use std::fmt;
use std::str::FromStr;

/// How a device keeps the keys and values of sessions. Products with them are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDtype {
    /// f16 beside weights of eight or four bits, where the device can; f32 elsewhere.
    #[default]
    Auto,
    /// IEEE 754 single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// Eight bits, with one scale for each head's key, and one for its value, of each position.
    Int8,
}

impl KvDtype {
    /// Every dtype that keys and values can be kept in, the widest first.
    pub const KEPT: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::Int8];

    /// Bytes of one head's key or value, `dim` values, of one position.
    pub(crate) fn bytes(self, dim: usize) -> usize {
        match self {
            Self::Auto | Self::F32 => dim * size_of::<f32>(),
            Self::Bf16 | Self::F16 => dim * 2,
            Self::Int8 => dim + size_of::<f32>(),
        }
    }
}

impl FromStr for KvDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("`{text}` is no dtype of keys and values: use auto, f32, bf16, f16 or int8")),
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}
