//! How much memory weights and passes take, known before anything is allocated.

use petals_protocol::{Injection, PassLayout};

use super::BlockStack;
use crate::config::ModelConfig;
use crate::device::Dtype;

const F32: u64 = 4;

/// Weights of one block: in matrices, kept in the chosen dtype, and in norms and biases, kept in f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockWeights {
    matrices: u64,
    vectors: u64,
}

impl BlockWeights {
    pub(crate) fn bytes(self, dtype: Dtype) -> u64 {
        self.matrices * dtype.size() + self.vectors * F32
    }
}

impl ModelConfig {
    /// Weights of one block.
    pub(crate) fn block_weights(&self) -> BlockWeights {
        let [d, q, k, f] = self.widths();
        let when = |condition: bool, count: u64| if condition { count } else { 0 };
        let biases = when(self.qkv_bias, q + 2 * k) + when(self.output_bias, d) + when(self.mlp_bias, 2 * f + d);
        BlockWeights {
            matrices: d * (2 * q + 2 * k + 3 * f),
            vectors: 2 * d + biases + when(self.qk_norm, 2 * self.head_dim as u64),
        }
    }

    fn widths(&self) -> [u64; 4] {
        [self.hidden_size, self.query_width(), self.key_width(), self.intermediate_size].map(|n| n as u64)
    }
}

impl BlockStack {
    /// Bytes that the stash of such a pass takes: exactly what [`super::Stash::bytes`] will say.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [d, q, k, f] = self.config.widths();
        let norms = u64::from(self.config.qk_norm);
        let per_row = d + 2 * k + norms * k;
        let per_active = q + d + 2 * f + norms * q;
        let [all, usual, last] = row_counts(layout);
        let blocks = layout.span.len() as u64;
        let active = (blocks - 1).saturating_mul(usual).saturating_add(last);
        let rows = blocks.saturating_mul(all).saturating_mul(per_row);
        rows.saturating_add(active.saturating_mul(per_active)).saturating_mul(F32)
    }

    /// An upper bound on the bytes that a pass, forward or backward, takes beside weights and stash.
    ///
    /// It counts the widest moment of a block and the attention's scores for one block of queries per thread on the CPU,
    /// for all of them elsewhere.
    pub fn activation_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [d, q, k, f] = self.config.widths();
        let [all, usual, _] = row_counts(layout);
        let longest = layout.lengths.iter().copied().max().unwrap_or_default();
        let seen = u64::from(longest) + u64::from(layout.prefix_len);
        let scores = if self.device.has_kernels() {
            let threads = rayon::current_num_threads() as u64;
            threads.saturating_mul(2 * 64).saturating_mul(seen)
        } else {
            let slots = u64::from(longest).saturating_mul(layout.lengths.len() as u64) + u64::from(layout.prefix_len);
            slots.saturating_mul(4 * self.config.num_attention_heads as u64).saturating_mul(seen)
        };
        // Input, output, gradient and residual rows; queries, keys and values with their gradients; the MLP's inside.
        let rows = all.saturating_mul(4 * d + 4 * k + 4 * q).saturating_add(usual.saturating_mul(5 * f));
        // A half-precision weight is widened for its product on the CPU.
        let widened =
            if self.device.is_cpu() && self.dtype != Dtype::F32 { d.saturating_mul(2 * f).max(d * q) } else { 0 };
        rows.saturating_add(scores).saturating_add(widened).saturating_mul(F32)
    }
}

/// Rows of a pass, active rows of its blocks, active rows of its last block.
fn row_counts(layout: &PassLayout) -> [u64; 3] {
    let text = layout.tokens() as u64;
    let all = text + u64::from(layout.prefix_len);
    let usual = if layout.injection == Injection::Replace { text } else { all };
    [all, usual, layout.read_rows.as_ref().map_or(usual, |rows| rows.len() as u64)]
}
