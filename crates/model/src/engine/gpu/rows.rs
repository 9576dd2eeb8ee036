//! Matrices in the memory of a GPU.

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::Gpu;
use crate::config::{Activation, MlpDesign};
use crate::engine::shapes::Area;

/// Rows of `width` values, back to back. A clone is the same memory, and is not written to while there is another.
#[derive(Debug, Clone)]
pub(crate) struct GpuRows {
    pub(super) values: kernels::Buffer,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Who is told by the norm of these rows, and what, if they are not finite.
    pub(super) watched: Option<(kernels::Watch, u32)>,
}

impl GpuRows {
    pub(super) fn new(values: kernels::Buffer, height: usize, width: usize) -> Self {
        Self { values, height, width, watched: None }
    }

    pub(super) fn len(&self) -> usize {
        self.height * self.width
    }

    /// All of it.
    pub(super) fn all(&self) -> kernels::Strided<'_> {
        kernels::Strided { buffer: &self.values, first: 0, row: self.width, column: 1 }
    }

    /// The transposed matrix.
    pub(super) fn turned(&self) -> kernels::Strided<'_> {
        kernels::Strided { buffer: &self.values, first: 0, row: 1, column: self.width }
    }

    /// From the first value of an area on.
    pub(super) fn area(&self, area: &Area) -> kernels::Strided<'_> {
        kernels::Strided { first: area.rows.start * self.width + area.column, ..self.all() }
    }
}

impl<R: Runtime> Gpu<R> {
    /// A matrix of whatever was there before.
    pub(super) fn empty(&self, height: usize, width: usize) -> GpuRows {
        GpuRows::new(self.gpu.empty(height * width), height, width)
    }

    /// The same values where nobody else sees them change.
    pub(super) fn own(&self, rows: GpuRows) -> GpuRows {
        if rows.values.is_own() {
            return GpuRows { watched: None, ..rows };
        }
        let copy = self.empty(rows.height, rows.width);
        kernels::copy(&self.gpu, (&rows.values, 0), (&copy.values, 0), rows.len());
        copy
    }
}

/// What kernels call an MLP's activation.
pub(super) fn activation(mlp: MlpDesign) -> kernels::Activation {
    match mlp.activation {
        Activation::Silu => kernels::Activation::Silu,
        Activation::Gelu => kernels::Activation::Gelu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
        Activation::Relu => kernels::Activation::Relu,
        Activation::ReluSquared => kernels::Activation::ReluSquared,
        Activation::ClampedSwish => kernels::Activation::ClampedSwish,
    }
}
