//! Products with frozen projections.

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::Gpu;
use super::linear::Linear;
use super::rows::GpuRows;

impl<R: Runtime> Gpu<R> {
    /// A product with all of `linear`'s outputs.
    pub(super) fn product(
        &self,
        linear: &Linear,
        x: &GpuRows,
        first: usize,
        inside: kernels::Inside,
        onto: kernels::Onto<'_>,
    ) {
        let rows = x.height - first;
        let given = kernels::Product { x: &x.values, first, rows, back: false, bias: linear.bias(), inside };
        kernels::product(&self.gpu, linear.weight(), linear.columns(), given, onto);
    }

    pub(super) fn product_back(&self, linear: &Linear, dy: &GpuRows, onto: kernels::Onto<'_>) {
        let inside = kernels::Inside::Plain;
        let given = kernels::Product { x: &dy.values, first: 0, rows: dy.height, back: true, bias: None, inside };
        kernels::product(&self.gpu, linear.weight(), linear.columns(), given, onto);
    }
}
