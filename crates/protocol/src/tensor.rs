//! Tensors on the wire: a dtype, a shape and little-endian bytes.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Element type of a tensor on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl WireDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for WireDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
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
            _ => Err(format!("`{text}` is not a wire dtype: use f32, f16 or bf16")),
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
        self.shape.iter().try_fold(self.dtype.size(), |product, &n| product.checked_mul(n as usize))
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

    /// Encodes `values`, row-major, rounding to nearest where `dtype` is narrower.
    ///
    /// # Panics
    /// If `values` does not have exactly the elements of `shape`, or an extent exceeds `u32::MAX`: both are mistakes of
    /// the caller, not of a peer.
    pub fn from_f32(dtype: WireDtype, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} against {} values", values.len());
        let extent = |&n: &usize| u32::try_from(n).expect("a tensor extent fits into 32 bits");
        let meta = TensorMeta { dtype, shape: shape.iter().map(extent).collect() };
        let bytes = match dtype {
            WireDtype::F32 if cfg!(target_endian = "little") => bytemuck::cast_slice(values).to_vec(),
            WireDtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            WireDtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            WireDtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        };
        Self { meta, bytes }
    }

    /// Checks the shape and that every value is finite, and decodes to f32, row-major.
    ///
    /// # Errors
    /// [`TensorError::Shape`] or [`TensorError::NotFinite`], naming the tensor as `what`.
    pub fn to_f32(&self, what: &'static str, expected: &[usize]) -> Result<Vec<f32>, TensorError> {
        let same = self.meta.shape.iter().map(|&n| n as usize).eq(expected.iter().copied());
        if !same {
            let (got, expected) = (self.meta.shape.clone(), expected.to_vec());
            return Err(TensorError::Shape { what, got, expected });
        }
        let values = self.decode();
        // A sum of zeros is finite exactly if every factor is: one pass without branches.
        if values.iter().map(|v| v * 0.0).sum::<f32>() != 0.0 {
            let index = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
            return Err(TensorError::NotFinite { what, index });
        }
        Ok(values)
    }

    fn decode(&self) -> Vec<f32> {
        match self.meta.dtype {
            WireDtype::F32 => self.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            WireDtype::F16 => self.bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            WireDtype::Bf16 => self.bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }

    /// Dtype and shape.
    pub fn meta(&self) -> &TensorMeta {
        &self.meta
    }

    /// The raw data, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_round_trips_exactly_and_halves_round() {
        let values = [1.0, -2.5, 1e-20, 2.7654321];
        assert_eq!(Tensor::from_f32(WireDtype::F32, &[2, 2], &values).to_f32("x", &[2, 2]).unwrap(), values);
        for (dtype, relative) in [(WireDtype::F16, 1e-3), (WireDtype::Bf16, 8e-3)] {
            let back = Tensor::from_f32(dtype, &[4], &values).to_f32("x", &[4]).unwrap();
            for (a, b) in back.iter().zip(values) {
                assert!((a - b).abs() <= b.abs() * relative + 1e-7, "{dtype}: {a} for {b}");
            }
        }
    }

    #[test]
    fn wrong_lengths_shapes_and_values_are_refused_by_name() {
        let meta = TensorMeta { dtype: WireDtype::F32, shape: vec![2, 3] };
        assert!(matches!(Tensor::new(meta, vec![0; 23]), Err(TensorError::Length { bytes: 23, .. })));
        let huge = TensorMeta { dtype: WireDtype::F32, shape: vec![u32::MAX; 3] };
        assert!(Tensor::new(huge, vec![]).is_err());
        let tensor = Tensor::from_f32(WireDtype::F32, &[3], &[0.0, f32::NAN, f32::INFINITY]);
        let error = tensor.to_f32("prompts", &[1, 3]).unwrap_err();
        assert_eq!(error.to_string(), "prompts has shape [3], expected [1, 3]");
        assert_eq!(tensor.to_f32("prompts", &[3]), Err(TensorError::NotFinite { what: "prompts", index: 1 }));
    }
}
