//! Where blocks compute and in which dtype.

use std::fmt;
use std::str::FromStr;
use std::sync::Once;

use burn::tensor::DType;

use crate::tensor::RawDevice;

#[cfg(feature = "cuda")]
mod probe;

/// Just below the largest block for which glibc's malloc adapts.
const LARGE: usize = (32 << 20) - (64 << 10);

/// A pass takes and gives back some megabytes dozens of times. glibc returns such memory to the system each time, and the
/// page faults cost a tenth of a small pass; once a block of [`LARGE`] has been freed (it is never touched), malloc keeps
/// up to twice as much for itself. Elsewhere this does nothing.
static KEEP_MEMORY: Once = Once::new();

/// A device that has been found usable.
///
/// Parsed from `auto`, `cpu`, `cuda` (the first GPU) or `cuda:N`. `auto` is the first GPU if this build has the feature
/// `cuda` and a driver, NVRTC and a GPU are present, and the CPU otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    kind: Kind,
    raw: RawDevice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cpu {
        kernels: bool,
    },
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device name.
    #[error("`{0}` is not a device: use auto, cpu, cuda or cuda:N")]
    Syntax(String),
    /// CUDA was asked for in a build without it.
    #[error("this program was built without CUDA: build it with `--features cuda`, or use the device cpu")]
    WithoutCuda,
    /// The driver library is missing or broken.
    #[error("no CUDA driver: {0}")]
    Driver(String),
    /// The run-time compiler's library is missing.
    #[error(
        "no NVRTC (libnvrtc.so), which compiles the kernels: install the CUDA toolkit or add it to LD_LIBRARY_PATH"
    )]
    Nvrtc,
    /// No GPU with this number.
    #[error("there is no cuda:{index}: the driver has {count} GPUs")]
    Index {
        /// The GPU asked for.
        index: usize,
        /// GPUs present.
        count: usize,
    },
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { kind: Kind::Cpu { kernels: true }, raw: RawDevice::Flex(Default::default()) }
    }

    /// The CPU through burn's operations alone, as other devices compute, without this crate's CPU kernels.
    /// Slower; for comparing the two.
    pub fn cpu_without_kernels() -> Self {
        Self { kind: Kind::Cpu { kernels: false }, ..Self::cpu() }
    }

    /// Whether this crate's kernels on host slices replace burn's element-wise operations and attention.
    pub(crate) fn has_kernels(&self) -> bool {
        self.kind == Kind::Cpu { kernels: true }
    }

    /// Runs a whole pass where its parts are spread over threads: on one of rayon's own, for kernels. From any other
    /// thread, each part would be handed over and waited for, which takes longer than a small part itself.
    pub(crate) fn install<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        if !self.has_kernels() {
            return pass();
        }
        KEEP_MEMORY.call_once(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE))));
        rayon::scope(|_| pass())
    }

    /// Memory that a GPU has free at the moment, in bytes; `None` for the CPU, or if the driver does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        match self.kind {
            Kind::Cpu { .. } => None,
            #[cfg(feature = "cuda")]
            Kind::Cuda(index) => probe::free_bytes(index),
        }
    }

    pub(crate) fn raw(&self) -> &RawDevice {
        &self.raw
    }

    pub(crate) fn is_cpu(&self) -> bool {
        matches!(self.kind, Kind::Cpu { .. })
    }

    #[cfg(feature = "cuda")]
    fn cuda(index: usize) -> Result<Self, DeviceError> {
        probe::cuda(index)?;
        let raw = RawDevice::Cuda(burn::backend::cuda::CudaDevice::new(index));
        Ok(Self { kind: Kind::Cuda(index), raw })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_index: usize) -> Result<Self, DeviceError> {
        Err(DeviceError::WithoutCuda)
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::cuda(0).unwrap_or_else(|_| Self::cpu())),
            "cpu" => Ok(Self::cpu()),
            "cuda" => Self::cuda(0),
            _ => {
                let index = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                Self::cuda(index.ok_or_else(|| DeviceError::Syntax(text.to_owned()))?)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Cpu { .. } => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Kind::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// How block weights are kept.
///
/// Everything but the weights is f32. On a GPU the matrix products with weights run in the weights' dtype. On the CPU
/// half-precision weights stay as they are in memory and are widened in registers; sums are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// f32 on the CPU, bf16 on GPUs.
    #[default]
    Auto,
    /// IEEE 754 single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

impl Dtype {
    /// What [`Dtype::Auto`] stands for on `device`; the others stand for themselves.
    pub fn on(self, device: &Device) -> Self {
        match self {
            Self::Auto if device.is_cpu() => Self::F32,
            Self::Auto => Self::Bf16,
            chosen => chosen,
        }
    }

    /// Bytes of one weight. [`Dtype::Auto`] counts as f32.
    pub fn size(self) -> u64 {
        match self {
            Self::Auto | Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    pub(crate) fn raw(self) -> DType {
        match self {
            Self::Auto | Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
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
            _ => Err(format!("`{text}` is not a dtype: use auto, f32, bf16 or f16")),
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed_and_wrong_ones_refused_by_name() {
        assert_eq!("cpu".parse::<Device>().unwrap(), Device::cpu());
        assert!("auto".parse::<Device>().is_ok());
        assert_eq!(Device::cpu().free_bytes(), None);
        assert_eq!("cuda:x".parse::<Device>(), Err(DeviceError::Syntax("cuda:x".into())));
        assert_eq!("gpu".parse::<Device>(), Err(DeviceError::Syntax("gpu".into())));
        if cfg!(not(feature = "cuda")) {
            assert_eq!("cuda:1".parse::<Device>(), Err(DeviceError::WithoutCuda));
        }
    }

    #[test]
    fn auto_is_f32_on_the_cpu() {
        assert_eq!("auto".parse::<Dtype>().unwrap().on(&Device::cpu()), Dtype::F32);
        assert_eq!(Dtype::Bf16.on(&Device::cpu()), Dtype::Bf16);
        assert!("int8".parse::<Dtype>().is_err());
    }
}
