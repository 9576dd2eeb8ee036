//! What keys and values can be kept in on a device.

use crate::device::{Device, DeviceError, Dtype, Kind, KvDtype};

impl KvDtype {
    /// What [`KvDtype::Auto`] stands for beside weights in `weights`; the others stand for themselves. On a GPU what is read for each token counts
    /// most, so keys and values are no wider than the weights there.
    ///
    /// # Errors
    /// None today: every device keeps every dtype.
    pub fn on(self, device: &Device, weights: Dtype) -> Result<Self, DeviceError> {
        Ok(match self {
            Self::Auto if weights.is_quantised() => Self::F16,
            Self::Auto if weights == Dtype::F32 || matches!(device.kind(), Kind::Host) => Self::F32,
            #[cfg(feature = "burn")]
            Self::Auto if matches!(device.kind(), Kind::Reference) => Self::F32,
            Self::Auto => Self::Bf16,
            chosen => chosen,
        })
    }
}
