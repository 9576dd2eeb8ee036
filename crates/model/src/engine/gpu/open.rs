//! A GPU as an engine.

use std::sync::Arc;

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::Gpu;

impl<R: Runtime> Gpu<R> {
    /// The GPU that the runtime calls `device`, which was found usable.
    pub(crate) fn new(device: &R::Device) -> Self {
        Self { gpu: kernels::Gpu::new(device), pools: Arc::default() }
    }

    /// The same, whose large products of weights that are not f32 are computed by `large`.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn with_large(self, large: kernels::Large<R>) -> Self {
        Self { gpu: self.gpu.with_large(large), ..self }
    }

    /// What it has been asked to do.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> &kernels::Counts {
        self.gpu.counts()
    }
}
