//! Where blocks compute, and what they and their sessions are kept as.

use clap::Args;
use petals_model::{Checkpoint, CheckpointError, Device, Dtype, KvDtype};

/// Arguments that say so, for every command that loads blocks.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Dtype of the weights: auto (f32 on the CPU, or int4 or int8 for quantised checkpoints; bf16 on CUDA), f32, bf16, f16, int8 (8.5 bits a weight) or int4
    /// (4.5 bits).
    #[arg(long, default_value = "auto", value_name = "DTYPE")]
    pub dtype: Dtype,
    /// Dtype of the keys and values of sessions: auto (f32; f16 beside int8 and int4), f32, bf16, f16 or int8.
    #[arg(long, default_value = "auto", value_name = "DTYPE")]
    pub kv_dtype: KvDtype,
}

impl DeviceArgs {
    /// The device, if it is there, and what weights, and keys and values, are kept as on it.
    ///
    /// # Errors
    /// If there is no such device, it does not keep keys and values so, or tensors of the checkpoint are missing.
    pub(crate) fn resolve(&self, checkpoint: &Checkpoint) -> Result<(Device, Dtype, KvDtype), CheckpointError> {
        let device: Device = self.device.parse()?;
        let (dtype, kv_dtype) = self.on(&device, Some(checkpoint))?;
        Ok((device, dtype, kv_dtype))
    }

    /// What weights, and keys and values, are kept as on `device`.
    ///
    /// # Errors
    /// If it does not keep keys and values so, or tensors of the checkpoint are missing.
    pub(crate) fn on(
        &self,
        device: &Device,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(Dtype, KvDtype), CheckpointError> {
        let dtype = match checkpoint {
            Some(checkpoint) => checkpoint.dtype_on(self.dtype, device)?,
            None => self.dtype.on(device),
        };
        Ok((dtype, self.kv_dtype.on(device, dtype)?))
    }
}
