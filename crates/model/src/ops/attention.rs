//! Causal attention of packed examples over a shared prefix.
//!
//! Queries exist for the active rows only, `[active, query_heads·dim]`; keys and values for all rows of the pass, side
//! by side `[rows, 2·key_heads·dim]`. A query of example `e` sees the whole prefix and its own example's keys up to its
//! own position. With `S = scale · Q·Kᵀ` over what it sees, `P = softmax(S)`, `O = P·V`.
//!
//! The backward recomputes `P` from the saved queries, keys and values. With `dO` given: `dV = Pᵀ·dO`, `dP = dO·Vᵀ`,
//! `dS = P ∘ (dP - rowsum(P ∘ dP))`, `dQ = scale · dS·K`, `dK = scale · dSᵀ·Q`. Keys and values of the prefix collect
//! gradients from every example, those of a group of query heads from every head of the group.

use std::ops::Range;

use crate::device::Device;
use crate::kernels;
use crate::tensor::{DeviceFailure, Tensor, from_vec, read};

mod portable;

/// How many heads of which width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key_value: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.query / self.key_value
    }

    pub(crate) fn scale(self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }

    /// Width of a row of queries.
    pub(crate) fn query_width(self) -> usize {
        self.query * self.dim
    }

    /// Width of a row of keys or of values.
    pub(crate) fn key_width(self) -> usize {
        self.key_value * self.dim
    }
}

/// The prefix or one example: its queries and the keys they may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Rows among the active ones.
    pub(crate) queries: Range<usize>,
    /// Rows of the segment's own keys among all rows.
    pub(crate) keys: Range<usize>,
    /// Rows `0..prefix` are keys that every query of the segment sees besides; 0 for the prefix itself.
    pub(crate) prefix: usize,
}

/// Who attends to whom.
#[derive(Debug, Clone)]
pub(crate) struct Geometry {
    /// The prefix, if its rows are active, then the examples in order. Together they cover the active rows.
    pub(crate) segments: Vec<Segment>,
    /// For each active row, how many of its segment's own keys it sees, at least 1.
    pub(crate) visible: Vec<u32>,
}

/// [`Geometry`] made ready for a device.
#[derive(Debug)]
pub(crate) struct Attention {
    heads: Heads,
    geometry: Geometry,
    portable: Option<Vec<portable::Group>>,
}

impl Attention {
    pub(crate) fn new(heads: Heads, geometry: Geometry, device: &Device) -> Self {
        let portable = (!device.has_kernels()).then(|| portable::groups(&geometry, device.raw()));
        Self { heads, geometry, portable }
    }

    /// The attention's output, `[active, query_heads·dim]`.
    pub(crate) fn forward(&self, q: &mut Tensor<2>, kv: &mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure> {
        if let Some(groups) = &self.portable {
            let outputs = groups.iter().map(|group| group.forward(self.heads, q, kv)).collect();
            return Ok(Tensor::cat(outputs, 0));
        }
        let (shape, device) = (q.dims(), q.device());
        let run = |q: &[f32], kv: &[f32]| kernels::attention::forward(self.heads, &self.geometry, q, kv);
        let output = read(q, |q| read(kv, |kv| run(q, kv)))??;
        Ok(from_vec(output, shape, &device))
    }

    /// The gradients of `q` and `kv`, in their shapes, from that of the output.
    ///
    /// With `prefix_only`, what belongs to text rows may be left zero.
    pub(crate) fn backward(
        &self,
        mut q: Tensor<2>,
        mut kv: Tensor<2>,
        mut d_output: Tensor<2>,
        prefix_only: bool,
    ) -> Result<(Tensor<2>, Tensor<2>), DeviceFailure> {
        if let Some(groups) = &self.portable {
            return Ok(portable::backward(groups, self.heads, &q, &kv, &d_output));
        }
        let (q_shape, kv_shape, device) = (q.dims(), kv.dims(), q.device());
        let run = |q: &[f32], kv: &[f32], d_output: &[f32]| {
            kernels::attention::backward(self.heads, &self.geometry, (q, kv, d_output), prefix_only)
        };
        let (dq, dkv) = read(&mut q, |q| read(&mut kv, |kv| read(&mut d_output, |d| run(q, kv, d))))???;
        Ok((from_vec(dq, q_shape, &device), from_vec(dkv, kv_shape, &device)))
    }
}
