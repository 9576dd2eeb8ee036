//! What comes back from the device, and what is noticed of it there.

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::Gpu;
use super::rows::GpuRows;
use crate::engine::{DeviceFailure, Fetched, Leaving};

impl<R: Runtime> Gpu<R> {
    /// See [`crate::engine::Engine::download`].
    pub(super) fn downloaded(&self, rows: GpuRows) -> Result<Vec<f32>, DeviceFailure> {
        let len = rows.len();
        self.answer(self.gpu.download(&rows.values.first(len)))
    }

    /// See [`crate::engine::Engine::watched`]: a norm looks on its way, for others a kernel does.
    pub(super) fn noting(&self, x: GpuRows, place: u32, normed: bool, watch: &kernels::Watch) -> GpuRows {
        if normed {
            return GpuRows { watched: Some((watch.clone(), place)), ..x };
        }
        self.gpu.check(&x.values, watch, place);
        x
    }

    /// See [`crate::engine::Engine::fetch`].
    pub(super) fn fetched(
        &self,
        leaving: Vec<Leaving<GpuRows>>,
        watch: kernels::Watch,
    ) -> Result<Fetched, DeviceFailure> {
        let of_matrix = |Leaving { rows, first, place, rounded }: Leaving<GpuRows>| {
            let (first, len) = (first * rows.width, rows.len());
            kernels::Leaving { values: rows.values.first(len), first, place, rounded }
        };
        let leaving: Vec<_> = leaving.into_iter().map(of_matrix).collect();
        let kernels::Fetched { matrices, not_finite } = self.answer(self.gpu.fetch(&leaving, watch))?;
        Ok(Fetched { matrices, not_finite })
    }

    pub(super) fn answer<T>(&self, answer: Result<T, kernels::GpuFailure>) -> Result<T, DeviceFailure> {
        if answer.is_err() {
            // What pools hold for other sizes may be what the next pass lacks.
            self.gpu.clean_up();
        }
        answer.map_err(|e| DeviceFailure(e.to_string()))
    }
}
