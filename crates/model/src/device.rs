//! Where blocks compute and in which dtype.

use std::fmt;
use std::str::FromStr;

#[cfg(feature = "cuda")]
mod cards;
mod dtype;
mod found;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod kernels;
mod kv_dtype;
#[cfg(feature = "cuda")]
mod probe;
#[cfg(feature = "vulkan")]
mod vulkan;

pub use dtype::Dtype;
pub use found::{DeviceKind, FoundDevice, FoundDevices};
pub use kv_dtype::KvDtype;
#[cfg(feature = "vulkan")]
pub(crate) use vulkan::Adapter;

/// A device that has been found usable.
///
/// Parsed from `auto`, `cpu`, `cuda` (the first GPU), `cuda:N`, `vulkan` (the first GPU, or a software device if there is none) or
/// `vulkan:N`. `auto` is the first GPU that this build can use (features `cuda` and `vulkan`, in this order) and the CPU if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    kind: Kind,
}

/// Which device, for the engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The CPU with this crate's kernels.
    Host,
    /// The CPU with burn's operations.
    #[cfg(feature = "burn")]
    Reference,
    #[cfg(feature = "cuda")]
    Cuda(usize),
    #[cfg(feature = "vulkan")]
    Vulkan(Adapter),
}

/// Why a device cannot be used. Messages end with what to do, see [`DeviceError::remedy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device name.
    #[error("`{0}` is not a device: {remedy}", remedy = self.remedy())]
    Syntax(String),
    /// `auto` among others.
    #[error("auto is one device by itself, the best one: {}", self.remedy())]
    AutoAmongOthers,
    /// CUDA was asked for in a build without it.
    #[error("this program was built without CUDA: {}", self.remedy())]
    WithoutCuda,
    /// Vulkan was asked for in a build without it.
    #[error("this program was built without Vulkan: {}", self.remedy())]
    WithoutVulkan,
    /// No device answers.
    #[error("no Vulkan device: {}", self.remedy())]
    NoVulkan,
    /// No Vulkan device with this number.
    #[error("there is no vulkan:{index}; the devices are: {present}")]
    Adapter {
        /// The device asked for.
        index: usize,
        /// Numbers and names of those present.
        present: String,
    },
    /// The device keeps no keys and values in this dtype.
    #[error("{device} has no {dtype} to keep keys and values in: {}", self.remedy())]
    KvDtype {
        /// Which device.
        device: String,
        /// Which dtype.
        dtype: KvDtype,
    },
    /// A weight that the device has no place for, however much memory it has.
    #[error("{device} holds at most {limit} bytes in one piece, a weight of this model in this dtype has {bytes}")]
    Buffer {
        /// Which device.
        device: String,
        /// Bytes of the weight.
        bytes: u64,
        /// The largest buffer of the device.
        limit: u64,
    },
    /// The driver library is missing or broken.
    #[error("no CUDA driver ({0}): {remedy}", remedy = self.remedy())]
    Driver(String),
    /// The run-time compiler's library is missing.
    #[error("no NVRTC (libnvrtc.so), which compiles the kernels: {}", self.remedy())]
    Nvrtc,
    /// The headers are missing that kernels include.
    #[error("no CUDA headers, which kernels are compiled with ({0}): {remedy}", remedy = self.remedy())]
    Headers(String),
    /// No GPU with this number.
    #[error("there is no cuda:{index}: the driver has {count} GPUs")]
    Index {
        /// The GPU asked for.
        index: usize,
        /// GPUs present.
        count: usize,
    },
}

impl DeviceError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Syntax(_) => {
                "use auto, cpu, cuda, cuda:N, vulkan or vulkan:N, or several of them with commas between"
            }
            Self::AutoAmongOthers => "name each device, such as cuda:0,cpu",
            Self::WithoutCuda => "build it with `--features cuda`, or use the device cpu",
            Self::WithoutVulkan => "build it with `--features vulkan`, or use the device cpu",
            Self::NoVulkan => "install the driver of your GPU (Debian: mesa-vulkan-drivers)",
            Self::Adapter { .. } | Self::Index { .. } => "name one of those that are there",
            Self::KvDtype { .. } => "use --kv-dtype f32 or int8",
            Self::Buffer { .. } => "use a --dtype of fewer bits, or another device",
            Self::Driver(_) => "install NVIDIA's driver, and see that `nvidia-smi` lists the card",
            Self::Nvrtc => "install the CUDA toolkit or add it to LD_LIBRARY_PATH",
            Self::Headers(_) => "install the CUDA toolkit, or set CUDA_PATH to where its include directory is",
        }
    }

    /// What is the matter, without the remedy.
    pub fn cause(&self) -> String {
        let whole = self.to_string();
        whole
            .strip_suffix(self.remedy())
            .map_or_else(|| whole.clone(), |cause| cause.trim_end_matches([':', ' ']).to_owned())
    }
}

impl Device {
    /// Whether blocks on it can read weights from where their files are mapped.
    pub fn reads_in_place(&self) -> bool {
        matches!(self.kind(), Kind::Host)
    }

    /// One device, or several with commas between.
    ///
    /// # Errors
    /// That of the first one that cannot be used; `auto` stands alone.
    pub fn list(text: &str) -> Result<Vec<Self>, DeviceError> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        if names.len() > 1 && names.contains(&"auto") {
            return Err(DeviceError::AutoAmongOthers);
        }
        names.into_iter().map(str::parse).collect()
    }

    /// The CPU.
    pub fn cpu() -> Self {
        Self { kind: Kind::Host }
    }

    /// The CPU through burn's operations alone, as GPUs compute, without this crate's CPU kernels. Slower; what engines are
    /// compared to. There if this crate is built with the feature `burn`.
    #[cfg(feature = "burn")]
    pub fn reference() -> Self {
        Self { kind: Kind::Reference }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What the hardware is called, if that is known.
    pub fn hardware(&self) -> Option<&str> {
        match &self.kind {
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(adapter) => Some(adapter.name()),
            _ => None,
        }
    }

    /// Memory that a GPU has free at the moment, in bytes; `None` if it has none of its own, or if the driver does not say. By Vulkan it
    /// is what the GPU has in all.
    pub fn free_bytes(&self) -> Option<u64> {
        match &self.kind {
            #[cfg(feature = "cuda")]
            Kind::Cuda(index) => probe::free_bytes(*index),
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(adapter) => adapter.own_memory(),
            _ => None,
        }
    }

    /// Keeps compiled kernels; of CPUs there are none.
    #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
    pub fn keep_kernels(_directory: &std::path::Path) {}

    /// The largest tensor that the device can hold, in bytes, if that is less than its memory.
    pub(crate) fn largest_buffer(&self) -> Option<u64> {
        match &self.kind {
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(adapter) => Some(adapter.largest_buffer()),
            _ => None,
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(index: usize) -> Result<Self, DeviceError> {
        probe::cuda(index)?;
        cards::headers()?;
        Ok(Self { kind: Kind::Cuda(index) })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_index: usize) -> Result<Self, DeviceError> {
        Err(DeviceError::WithoutCuda)
    }

    #[cfg(feature = "vulkan")]
    fn vulkan(index: Option<usize>) -> Result<Self, DeviceError> {
        Ok(Self { kind: Kind::Vulkan(vulkan::adapter(index)?) })
    }

    #[cfg(not(feature = "vulkan"))]
    fn vulkan(_index: Option<usize>) -> Result<Self, DeviceError> {
        Err(DeviceError::WithoutVulkan)
    }

    /// The best that there is. A software device of Vulkan is slower than the CPU itself.
    fn auto() -> Self {
        let gpu = Self::cuda(0).or_else(|_| Self::vulkan(None));
        gpu.ok().filter(Self::is_gpu).unwrap_or_else(Self::cpu)
    }

    /// Whether it does one thing after the other, whoever asks for them. Processors do several at a time.
    pub fn has_queue(&self) -> bool {
        match &self.kind {
            Kind::Host => false,
            #[cfg(feature = "burn")]
            Kind::Reference => false,
            #[cfg(feature = "cuda")]
            Kind::Cuda(_) => true,
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(_) => true,
        }
    }

    /// Whether it is a GPU: neither the processor nor a software device, which the processor plays.
    pub fn is_gpu(&self) -> bool {
        match &self.kind {
            Kind::Host => false,
            #[cfg(feature = "burn")]
            Kind::Reference => false,
            #[cfg(feature = "cuda")]
            Kind::Cuda(_) => true,
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(adapter) => !adapter.is_software(),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| DeviceError::Syntax(text.to_owned()))?)),
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::auto()),
            ("cpu", None) => Ok(Self::cpu()),
            ("cuda", index) => Self::cuda(index.unwrap_or_default()),
            ("vulkan", index) => Self::vulkan(index),
            _ => Err(DeviceError::Syntax(text.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Host => f.write_str("cpu"),
            #[cfg(feature = "burn")]
            Kind::Reference => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Kind::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(adapter) => write!(f, "vulkan:{}", adapter.index()),
        }
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
    fn several_devices_are_named_with_commas_and_auto_stands_alone() {
        assert_eq!(Device::list("cpu"), Ok(vec![Device::cpu()]));
        assert_eq!(Device::list("cpu, cpu"), Ok(vec![Device::cpu(), Device::cpu()]));
        assert_eq!(Device::list("auto").map(|devices| devices.len()), Ok(1));
        assert_eq!(Device::list("cpu,auto"), Err(DeviceError::AutoAmongOthers));
        assert_eq!(Device::list("cpu,"), Err(DeviceError::Syntax(String::new())));
        assert_eq!(Device::list("cpu,gpu"), Err(DeviceError::Syntax("gpu".into())));
    }

    #[test]
    fn messages_end_with_the_remedy_and_causes_do_not() {
        let syntax = DeviceError::Syntax("gpu".into());
        assert_eq!(syntax.cause(), "`gpu` is not a device");
        assert!(syntax.to_string().ends_with(syntax.remedy()), "{syntax}");
        let driver = DeviceError::Driver("libcuda.so.1 cannot be loaded".into());
        assert_eq!(driver.cause(), "no CUDA driver (libcuda.so.1 cannot be loaded)");
        let index = DeviceError::Index { index: 3, count: 1 };
        assert_eq!(index.cause(), index.to_string());
    }
}
