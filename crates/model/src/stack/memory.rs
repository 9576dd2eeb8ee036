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
    /// Bytes that the whole stash of such a pass takes: exactly what [`super::Stash::bytes`] will say.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [per_row, per_active] = self.stash_widths();
        let [all, usual, last] = row_counts(layout);
        let blocks = layout.span.len() as u64;
        let active = blocks.saturating_sub(1).saturating_mul(usual).saturating_add(last);
        let rows = blocks.saturating_mul(all).saturating_mul(per_row);
        rows.saturating_add(active.saturating_mul(per_active)).saturating_mul(F32)
    }

    /// Bytes of a stash that has only what enters each block: exactly what [`super::Stash::bytes`] will say.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn input_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [d, ..] = self.config.widths();
        let [all, ..] = row_counts(layout);
        all.saturating_mul(d).saturating_mul(layout.span.len() as u64).saturating_mul(F32)
    }

    /// An upper bound on the bytes of one block's part of the whole stash: what a backward from inputs alone takes beside
    /// [`Self::activation_bytes_estimate`].
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn block_stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [per_row, per_active] = self.stash_widths();
        let [all, usual, _] = row_counts(layout);
        all.saturating_mul(per_row).saturating_add(usual.saturating_mul(per_active)).saturating_mul(F32)
    }

    /// Values that a block's stash has of each row, and of each active row beside those.
    fn stash_widths(&self) -> [u64; 2] {
        let [d, q, k, f] = self.config.widths();
        let norms = u64::from(self.config.qk_norm);
        [d + 2 * k + norms * k, q + d + 2 * f + norms * q]
    }

    /// An upper bound on the bytes that a pass, forward or backward, takes beside weights, stash and the vectors that it
    /// is given; without what an allocator loses to fragments.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn activation_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [d, q, k, f] = self.config.widths();
        let [all, usual, _] = row_counts(layout);
        let prompts = if layout.has_prompts() { layout.span.len() as u64 } else { 0 };
        // Inputs, outputs, gradients, norms and residuals; queries, keys and values with their gradients, before and
        // after norm and rotation; the angles; the MLP's inside, whose activation has more temporaries without kernels,
        // and whose rows a product copies into strips with them.
        let per_row = d.saturating_mul(10).saturating_add((q + k).saturating_mul(8) + 4 * self.config.head_dim as u64);
        let per_active = f.saturating_mul(if self.device.has_kernels() { 7 } else { 14 });
        let rows = all.saturating_mul(per_row).saturating_add(usual.saturating_mul(per_active));
        let tables = u64::from(layout.prefix_len).saturating_mul(d).saturating_mul(2 * prompts);
        let attention =
            if self.device.has_kernels() { self.kernel_attention(layout) } else { self.portable_attention(layout) };
        // Without kernels a half-precision weight is widened for its product on the CPU.
        let widens = self.device.is_cpu() && !self.device.has_kernels() && self.dtype != Dtype::F32;
        let widened = if widens { d * (2 * f).max(q).max(2 * k) } else { 0 };
        [tables, attention, widened].iter().fold(rows, |sum, part| sum.saturating_add(*part)).saturating_mul(F32)
    }

    /// An upper bound on the bytes that [`Self::step`] takes beside weights and caches, for sequences of which each has so many new rows
    /// behind so many positions, `(new, kept)`.
    ///
    /// Saturates for sizes that no memory could hold.
    pub fn step_bytes_estimate(&self, sequences: &[(u64, u64)]) -> u64 {
        let [d, q, k, f] = self.config.widths();
        let rows = sequences.iter().fold(0u64, |sum, (new, _)| sum.saturating_add(*new));
        let longest = sequences.iter().map(|(new, kept)| new.saturating_add(*kept)).max().unwrap_or_default();
        let per_row = d.saturating_mul(10).saturating_add((q + k).saturating_mul(8) + 4 * self.config.head_dim as u64);
        let per_row = per_row.saturating_add(f.saturating_mul(if self.device.has_kernels() { 7 } else { 14 }));
        let attention = if self.device.has_kernels() {
            (rayon::current_num_threads() as u64).saturating_mul(4 * 64).saturating_mul(longest)
        } else {
            // All are padded to the most new rows and the most keys.
            let count = sequences.len() as u64;
            let queries = count.saturating_mul(sequences.iter().map(|(new, _)| *new).max().unwrap_or_default());
            let per_seen = (self.config.num_attention_heads as u64).saturating_mul(8).saturating_add(4);
            let padded = queries.saturating_mul(q).saturating_add(count.saturating_mul(longest).saturating_mul(2 * k));
            queries.saturating_mul(longest).saturating_mul(per_seen).saturating_add(padded.saturating_mul(4))
        };
        rows.saturating_mul(per_row).saturating_add(attention).saturating_mul(F32)
    }

    /// Values of the CPU kernel: probabilities and their gradients for one block of queries per thread (twice, because
    /// the buffers grow), and the gradients that each example has for the prefix's keys and values.
    fn kernel_attention(&self, layout: &PassLayout) -> u64 {
        let [.., k, _] = self.config.widths();
        let [longest, prefix, examples] = extents(layout);
        let threads = rayon::current_num_threads() as u64;
        let scores = threads.saturating_mul(4 * 64).saturating_mul(longest.max(prefix).saturating_add(prefix));
        scores.saturating_add(examples.saturating_mul(prefix).saturating_mul(2 * k))
    }

    /// Values of the attention in burn's operations, whose examples are padded to the longest: masks, on the device and
    /// as they are made, of the usual and of the last block; scores, of which a backward holds up to eight at a time
    /// (probabilities, their gradients, parts and turned copies of both); and padded queries, keys and values.
    fn portable_attention(&self, layout: &PassLayout) -> u64 {
        let [_, q, k, _] = self.config.widths();
        let [longest, prefix, examples] = extents(layout);
        let slots = longest.saturating_mul(examples);
        let text = slots.saturating_mul(longest.saturating_add(prefix));
        let seen = text.saturating_add(prefix.saturating_mul(prefix));
        let per_seen = (self.config.num_attention_heads as u64).saturating_mul(8).saturating_add(4);
        let padded = slots.saturating_add(prefix).saturating_mul((q + k).saturating_mul(8));
        seen.saturating_mul(per_seen).saturating_add(padded)
    }
}

/// Text rows of the longest example, prefix rows, examples.
fn extents(layout: &PassLayout) -> [u64; 3] {
    let longest = layout.lengths.iter().copied().max().unwrap_or_default();
    [u64::from(longest), u64::from(layout.prefix_len), layout.lengths.len() as u64]
}

/// Rows of a pass, active rows of its blocks, active rows of its last block.
fn row_counts(layout: &PassLayout) -> [u64; 3] {
    let text = layout.lengths.iter().fold(0u64, |sum, &n| sum.saturating_add(u64::from(n)));
    let all = text.saturating_add(u64::from(layout.prefix_len));
    let usual = if layout.injection == Injection::Replace { text } else { all };
    [all, usual, layout.read_rows.as_ref().map_or(usual, |rows| rows.len() as u64)]
}
