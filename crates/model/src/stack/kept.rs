//! What keys and values can be kept in on a device.

use crate::device::{Device, DeviceError, Dtype, Kind, KvDtype};
#[cfg(feature = "burn")]
use crate::engine::burn::Burn;

impl KvDtype {
    /// What [`KvDtype::Auto`] stands for beside weights in `weights`; the others stand for themselves.
    ///
    /// # Errors
    /// [`DeviceError::KvDtype`] if the device has no place for values of this dtype.
    pub fn on(self, device: &Device, weights: Dtype) -> Result<Self, DeviceError> {
        match self {
            Self::Auto if weights.is_quantised() && Self::F16.fits(device) => Ok(Self::F16),
            Self::Auto => Ok(Self::F32),
            chosen if chosen.fits(device) => Ok(chosen),
            dtype => Err(DeviceError::KvDtype { device: device.to_string(), dtype }),
        }
    }

    /// Whether the device has it. Eight bits are in words, which every device has.
    fn fits(self, device: &Device) -> bool {
        match device.kind() {
            Kind::Host => true,
            #[cfg(feature = "burn")]
            _ => match self {
                Self::Auto | Self::F32 | Self::Int8 => true,
                Self::Bf16 => Burn::new(device).supports(Dtype::Bf16),
                Self::F16 => Burn::new(device).supports(Dtype::F16),
            },
        }
    }
}
