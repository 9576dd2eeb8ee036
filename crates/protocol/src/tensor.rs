//! Tensors on the wire: a dtype, a shape and little-endian bytes.

use serde::{Deserialize, Serialize};

mod values;

use values::ValueError;

/// Element type of a tensor on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// IEEE 754 half precision behind an exponent that all values of the tensor share, so that nothing leaves its range.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit integers: every 64 consecutive values share a scale.
    Int8,
}

impl WireDtype {
    /// Bytes of the data of `values` values, `None` if that overflows.
    pub fn byte_len(self, values: usize) -> Option<usize> {
        match self {
            Self::F32 => values.checked_mul(4),
            Self::F16 => values.checked_mul(2)?.checked_add(values::EXPONENT_LEN),
            Self::Bf16 => values.checked_mul(2),
            Self::Int8 => values.div_ceil(values::BLOCK).checked_mul(values::SCALE_LEN)?.checked_add(values),
        }
    }
}

impl std::fmt::Display for WireDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl std::str::FromStr for WireDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("`{text}` is not a wire dtype: use f32, bf16, f16 or int8")),
        }
    }
}

/// What a frame's header says of a tensor whose bytes follow in the frame's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMeta {
    /// Element type.
    pub dtype: WireDtype,
    /// Extents, outermost first; row-major.
    pub shape: Vec<u32>,
}

/// A tensor as it travels.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    meta: TensorMeta,
    bytes: Vec<u8>,
}

/// Why a tensor was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The shape and the number of bytes or elements do not belong together.
    #[error("a {dtype} tensor of shape {shape:?} does not have {bytes} bytes")]
    Length {
        /// Element type.
        dtype: WireDtype,
        /// Claimed shape.
        shape: Vec<u32>,
        /// Bytes present.
        bytes: usize,
    },
    /// Another shape was expected at this place.
    #[error("{what} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Shape received.
        got: Vec<u32>,
        /// Shape that the layout asks for.
        expected: Vec<usize>,
    },
    /// The exponent that the values share is not one that a sender writes.
    #[error("{what} has the exponent {exponent}")]
    Exponent {
        /// Which tensor.
        what: &'static str,
        /// The exponent.
        exponent: i16,
    },
    /// A value is NaN or infinite.
    #[error("{what} has a value that is not finite at element {index}")]
    NotFinite {
        /// Which tensor.
        what: &'static str,
        /// First such element.
        index: usize,
    },
}

impl TensorMeta {
    /// Bytes of the tensor's data, `None` if that overflows.
    pub fn byte_len(&self) -> Option<usize> {
        let values = self.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n as usize))?;
        self.dtype.byte_len(values)
    }
}

impl Tensor {
    /// Joins a description and bytes received.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the bytes are not exactly as many as the shape says.
    pub fn new(meta: TensorMeta, bytes: Vec<u8>) -> Result<Self, TensorError> {
        if meta.byte_len() == Some(bytes.len()) {
            Ok(Self { meta, bytes })
        } else {
            Err(TensorError::Length { dtype: meta.dtype, shape: meta.shape, bytes: bytes.len() })
        }
    }

    /// Encodes `values`, row-major, rounding to nearest where `dtype` is narrower. Values that are not finite stay so: the
    /// receiver refuses them.
    ///
    /// # Panics
    /// If `values` does not have exactly the elements of `shape`, or an extent exceeds `u32::MAX`: both are mistakes of
    /// the caller, not of a peer.
    pub fn from_f32(dtype: WireDtype, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} against {} values", values.len());
        let extent = |&n: &usize| u32::try_from(n).expect("a tensor extent fits into 32 bits");
        let meta = TensorMeta { dtype, shape: shape.iter().map(extent).collect() };
        let bytes = values::encode(dtype, values);
        Self { meta, bytes }
    }

    /// Checks the shape and that every value is finite, and decodes to f32, row-major.
    ///
    /// # Errors
    /// [`TensorError::Shape`], [`TensorError::Exponent`] or [`TensorError::NotFinite`], naming the tensor as `what`.
    pub fn to_f32(&self, what: &'static str, expected: &[usize]) -> Result<Vec<f32>, TensorError> {
        let same = self.meta.shape.iter().map(|&n| n as usize).eq(expected.iter().copied());
        if !same {
            let (got, expected) = (self.meta.shape.clone(), expected.to_vec());
            return Err(TensorError::Shape { what, got, expected });
        }
        values::decode(self.meta.dtype, &self.bytes).map_err(|error| match error {
            ValueError::Exponent(exponent) => TensorError::Exponent { what, exponent },
            ValueError::NotFinite(index) => TensorError::NotFinite { what, index },
        })
    }

    /// Dtype and shape.
    pub fn meta(&self) -> &TensorMeta {
        &self.meta
    }

    /// Bytes that [`Self::to_f32`] takes.
    pub fn f32_bytes(&self) -> u64 {
        // The shape was held against the data, so the product is that of a real number of values.
        4 * self.meta.shape.iter().map(|&n| u64::from(n)).product::<u64>()
    }

    /// The raw data, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests;
