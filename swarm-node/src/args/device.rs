//! Where blocks compute, and what they and their sessions are kept as.

use clap::Args;
use petals_model::{Checkpoint, CheckpointError, Device, Dtype, KvDtype, Place};

pub(super) const EXAMPLES: &str = "\
Examples:
  petals-node devices
  petals-node serve --model ./Llama-3.1-8B --device cuda:0,cuda:1     # half of the blocks on each of two equal cards
  petals-node serve --model ./Llama-3.1-8B --device cuda:0,cpu        # what does not fit on the card is computed by the processor";

/// Arguments of `devices`.
#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Print one JSON object per line on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments that say so, for every command that loads blocks.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N (see `petals-node devices`). Several devices, such as cuda:0,cuda:1 or cuda:0,cpu, divide
    /// the blocks among themselves: the first blocks go to the first one, as many as its memory and its speed say, and cpu gets what cards do not hold.
    #[arg(long, default_value = "auto", value_name = "DEVICE[,DEVICE...]")]
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
    /// The devices, if all of them are there, and what weights, and keys and values, are kept as on each.
    ///
    /// # Errors
    /// If there is no such device, it does not keep keys and values so, or tensors of the checkpoint are missing.
    pub(crate) fn resolve(&self, checkpoint: &Checkpoint) -> Result<Vec<Place>, CheckpointError> {
        self.on(&Device::list(&self.device)?, Some(checkpoint))
    }

    /// What weights, and keys and values, are kept as on each of the devices.
    ///
    /// # Errors
    /// If one does not keep keys and values so, or tensors of the checkpoint are missing.
    pub(crate) fn on(
        &self,
        devices: &[Device],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Vec<Place>, CheckpointError> {
        let place = |device: &Device| {
            let dtype = match checkpoint {
                Some(checkpoint) => checkpoint.dtype_on(self.dtype, device)?,
                None => self.dtype.on(device),
            };
            Ok(Place { device: device.clone(), dtype, kv_dtype: self.kv_dtype.on(device, dtype)? })
        };
        devices.iter().map(place).collect()
    }
}
