//! Norms, row by row. See [`crate::engine::Engine::normalise`] and its backward for the mathematics.

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::rows::GpuRows;
use crate::engine::NormWeights;

/// A norm's weights and biases.
#[derive(Debug)]
pub(crate) struct Norm {
    weights: kernels::Buffer,
    biases: Option<kernels::Buffer>,
    centred: bool,
    eps: f32,
}

impl Norm {
    pub(super) fn new<R: Runtime>(gpu: &kernels::Gpu<R>, weights: NormWeights) -> Self {
        let NormWeights { weight, bias, centred, eps } = weights;
        Self { weights: gpu.upload(&weight), biases: bias.map(|bias| gpu.upload(&bias)), centred, eps }
    }

    /// Values of what it norms.
    pub(super) fn width(&self) -> usize {
        self.weights.len()
    }

    fn shape(&self, rows: &GpuRows, groups: usize) -> kernels::NormShape {
        let &GpuRows { height, width, .. } = rows;
        let Self { centred, eps, .. } = *self;
        kernels::NormShape { rows: height, stride: width, groups, width: self.width(), centred, eps }
    }

    /// Norms the first `groups` runs of the rows of `x`, which are as wide as this is.
    pub(super) fn forward<R: Runtime>(
        &self,
        gpu: &kernels::Gpu<R>,
        x: &GpuRows,
        groups: usize,
        (y, before): (&GpuRows, Option<&GpuRows>),
    ) {
        let weights = (&self.weights, self.biases.as_ref());
        let before = before.map(|before| &before.values);
        let watched = x.watched.as_ref().map(|(watch, place)| (watch, *place));
        kernels::norm(gpu, self.shape(x, groups), &x.values, weights, &y.values, before, watched);
    }

    /// The gradient of [`Self::forward`]'s rows in `dx`, given these runs as they were.
    pub(super) fn backward<R: Runtime>(
        &self,
        gpu: &kernels::Gpu<R>,
        before: &GpuRows,
        dy: &GpuRows,
        groups: usize,
        dx: GpuRows,
    ) -> GpuRows {
        kernels::norm_back(gpu, self.shape(dy, groups), &before.values, &self.weights, &dy.values, &dx.values);
        dx
    }
}
