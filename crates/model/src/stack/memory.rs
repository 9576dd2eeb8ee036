//! How much memory weights and passes take, known before anything is allocated.

use petals_protocol::{Injection, PassLayout};

use super::BlockStack;
use crate::config::ModelConfig;
use crate::device::Dtype;
use crate::engine::shapes::AttentionSizes;
use crate::engine::{Engine, on_engine};

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

    /// Values of the largest matrix of a block.
    pub(super) fn largest_weight(&self) -> u64 {
        let [d, q, k, f] = self.widths();
        d * (2 * f).max(q).max(2 * k)
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
        let [d, .., f] = self.config.widths();
        let [all, usual, _] = row_counts(layout);
        let prompts = if layout.has_prompts() { layout.span.len() as u64 } else { 0 };
        let active = f.saturating_mul(self.mlp_values());
        let rows = all.saturating_mul(self.values_per_row()).saturating_add(usual.saturating_mul(active));
        let tables = u64::from(layout.prefix_len).saturating_mul(d).saturating_mul(2 * prompts);
        let sizes = AttentionSizes {
            longest: u64::from(layout.lengths.iter().copied().max().unwrap_or_default()),
            prefix: u64::from(layout.prefix_len),
            examples: layout.lengths.len() as u64,
            heads: self.config.heads(),
        };
        let attention = on_engine!(&self.blocks, blocks => blocks.engine.attention_values(sizes));
        let largest = self.config.largest_weight();
        let weight = on_engine!(&self.blocks, blocks => blocks.engine.weight_values(self.dtype, largest));
        [tables, attention, weight].iter().fold(rows, |sum, part| sum.saturating_add(*part)).saturating_mul(F32)
    }

    /// Values of each row: inputs, outputs, gradients, norms and residuals; queries, keys and values with their gradients, before and
    /// after norm and rotation; the angles.
    fn values_per_row(&self) -> u64 {
        let [d, q, k, _] = self.config.widths();
        d.saturating_mul(10).saturating_add((q + k).saturating_mul(8) + 4 * self.config.head_dim as u64)
    }

    /// Values of each active row and feature of the MLP.
    fn mlp_values(&self) -> u64 {
        fn of<E: Engine>(_: &super::Blocks<E>) -> u64 {
            E::MLP_VALUES
        }
        on_engine!(&self.blocks, blocks => of(blocks))
    }

    /// An upper bound on the bytes that [`Self::step`] takes beside weights and caches, for sequences of which each has so many new rows
    /// behind so many positions, `(new, kept)`.
    ///
    /// Saturates for sizes that no memory could hold.
    pub fn step_bytes_estimate(&self, sequences: &[(u64, u64)]) -> u64 {
        let [.., f] = self.config.widths();
        let rows = sequences.iter().fold(0u64, |sum, (new, _)| sum.saturating_add(*new));
        let per_row = self.values_per_row().saturating_add(f.saturating_mul(self.mlp_values()));
        let heads = self.config.heads();
        let attention = on_engine!(&self.blocks, blocks => blocks.engine.cached_attention_values(heads, sequences));
        rows.saturating_mul(per_row).saturating_add(attention).saturating_mul(F32)
    }
}

/// Rows of a pass, active rows of its blocks, active rows of its last block.
fn row_counts(layout: &PassLayout) -> [u64; 3] {
    let text = layout.lengths.iter().fold(0u64, |sum, &n| sum.saturating_add(u64::from(n)));
    let all = text.saturating_add(u64::from(layout.prefix_len));
    let usual = if layout.injection == Injection::Replace { text } else { all };
    [all, usual, layout.read_rows.as_ref().map_or(usual, |rows| rows.len() as u64)]
}
