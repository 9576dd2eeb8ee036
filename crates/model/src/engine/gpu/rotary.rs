//! Rotary position embedding: angles from the host's tables, since sines of large arguments are not exact on every device.

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::rows::GpuRows;
use crate::engine::rotary::{CosSin, Pairing, Turn};

/// Cosines and sines, `[rows, pairs]` each.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: kernels::Buffer,
    sin: kernels::Buffer,
    pairs: usize,
    pairing: Pairing,
}

impl Angles {
    pub(super) fn new<R: Runtime>(gpu: &kernels::Gpu<R>, CosSin { cos, sin, pairing }: CosSin, pairs: usize) -> Self {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let [cos, sin] = gpu.upload_runs([&bits(cos), &bits(sin)]);
        Self { cos, sin, pairs, pairing }
    }

    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    pub(super) fn is_interleaved(&self) -> bool {
        self.pairing.interleaved
    }

    pub(super) fn cos_sin(&self) -> (&kernels::Buffer, &kernels::Buffer) {
        (&self.cos, &self.sin)
    }

    /// Rotates the first `heads` heads of all rows in place.
    pub(super) fn rotate<R: Runtime>(&self, gpu: &kernels::Gpu<R>, x: &GpuRows, heads: usize, turn: Turn) {
        let Pairing { head_dim: dim, interleaved } = self.pairing;
        let (rows, stride, pairs, back) = (x.height, x.width, self.pairs, turn == Turn::Back);
        let rotation = kernels::Rotation { rows, stride, heads, dim, pairs, interleaved, back };
        kernels::rotate(gpu, rotation, self.cos_sin(), &x.values);
    }
}
