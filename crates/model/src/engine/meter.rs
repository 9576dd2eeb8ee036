//! How much memory caches take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of everything that was counted with it and still exists.
#[derive(Debug, Clone, Default)]
pub struct KvMeter(Arc<AtomicU64>);

/// Bytes that count as long as this lives.
#[derive(Debug)]
pub(crate) struct Metered {
    bytes: u64,
    meter: KvMeter,
}

impl KvMeter {
    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, bytes: u64) -> Metered {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Metered { bytes, meter: self.clone() }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
