//! What a device says when it cannot.

/// The device failed to compute or to hand over a result.
#[derive(Debug, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct DeviceFailure(pub(crate) String);

impl DeviceFailure {
    /// Whether it had no memory left. Drivers and runtimes have different words for that, and no code that survives.
    pub fn is_out_of_memory(&self) -> bool {
        let words = self.0.to_ascii_lowercase().replace(['_', ' '], "");
        ["outofmemory", "buffertoobig", "toolarge", "notenoughmemory"].iter().any(|said| words.contains(said))
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceFailure;

    #[test]
    fn words_for_no_memory_are_known() {
        for said in
            ["CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\"", "OutOfMemory", "BufferTooBig(17)", "Not enough memory left"]
        {
            assert!(DeviceFailure(said.to_owned()).is_out_of_memory(), "{said}");
        }
        assert!(!DeviceFailure("an illegal memory access was encountered".to_owned()).is_out_of_memory());
    }
}
