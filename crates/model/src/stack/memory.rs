//! How much memory weights and passes take, known before anything is allocated.

use petals_protocol::{Injection, Module, PassLayout, WeightChange};

use super::{BlockStack, tables};
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
        let [per_row, per_active] = self.stash_widths(layout);
        let [all, usual, last] = row_counts(layout);
        let blocks = layout.span.len() as u64;
        let active = blocks.saturating_sub(1).saturating_mul(usual).saturating_add(last);
        let rows = blocks.saturating_mul(all.saturating_mul(per_row).saturating_add(self.given_values(layout)));
        let values = rows.saturating_add(active.saturating_mul(per_active)).saturating_mul(F32);
        values.saturating_add(self.table_bytes(layout))
    }

    /// Bytes of a stash that has only what enters each block: exactly what [`super::Stash::bytes`] will say.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn input_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [d, ..] = self.config.widths();
        let [all, ..] = row_counts(layout);
        let values = all.saturating_mul(d).saturating_mul(layout.span.len() as u64).saturating_mul(F32);
        values.saturating_add(self.table_bytes(layout))
    }

    /// An upper bound on the bytes of one block's part of the whole stash: what a backward from inputs alone takes beside
    /// [`Self::activation_bytes_estimate`].
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn block_stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [per_row, per_active] = self.stash_widths(layout);
        let [all, usual, _] = row_counts(layout);
        let rows = all.saturating_mul(per_row).saturating_add(self.given_values(layout));
        rows.saturating_add(usual.saturating_mul(per_active)).saturating_mul(F32)
    }

    /// Values that a block's stash has of each row, and of each active row beside those.
    fn stash_widths(&self, layout: &PassLayout) -> [u64; 2] {
        let [d, q, k, f] = self.config.widths();
        let norms = u64::from(self.config.qk_norm);
        let (unscaled, attended) = match layout.weights {
            WeightChange::None => (false, false),
            WeightChange::LowRank { modules, .. } => (false, modules.contains(Module::Output)),
            WeightChange::Scales { modules } => {
                (modules.contains(Module::Key) || modules.contains(Module::Value), false)
            }
        };
        let rows = d + 2 * k + norms * k + u64::from(unscaled) * 2 * k;
        [rows, q + d + 2 * f + norms * q + u64::from(attended) * q]
    }

    /// Values of keys and values that a block's stash has in front of those of its rows.
    fn given_values(&self, layout: &PassLayout) -> u64 {
        let [_, _, k, _] = self.config.widths();
        let given = if layout.injection == Injection::KeysValues { u64::from(layout.prefix_len) } else { 0 };
        given.saturating_mul(2 * k)
    }

    /// Bytes of tables that a backward needs again.
    fn table_bytes(&self, layout: &PassLayout) -> u64 {
        let of_block = tables::lasting_bytes(&layout.block_tables(self.config.block_widths()));
        of_block.saturating_mul(layout.span.len() as u64)
    }

    /// An upper bound on the bytes that a pass, forward or backward, takes beside weights, stash and the vectors that it
    /// is given; without what an allocator loses to fragments.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn activation_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [.., f] = self.config.widths();
        let [all, usual, _] = row_counts(layout);
        let active = f.saturating_mul(self.mlp_values());
        let rows = all.saturating_mul(self.values_per_row()).saturating_add(usual.saturating_mul(active));
        let rows = rows.saturating_add(all.saturating_mul(self.adapted_values_per_row(layout.weights)));
        // As they are given, on the device, and their gradients.
        let of_block = layout.block_values(self.config.block_widths()) as u64;
        let tables = of_block.saturating_mul(3 * layout.span.len() as u64).saturating_add(self.given_values(layout));
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

    /// Values of each row that a change of the weights takes: the inputs of adapted matrices, computed again for the backward, and what is between
    /// low-rank tables.
    fn adapted_values_per_row(&self, weights: WeightChange) -> u64 {
        let [d, q, k, f] = self.config.widths();
        match weights {
            WeightChange::None => 0,
            WeightChange::LowRank { rank, .. } => (2 * d + q + f).saturating_add(8 * u64::from(rank)),
            WeightChange::Scales { .. } => 2 * k + f,
        }
    }

    /// Values of each active row and feature of the MLP.
    fn mlp_values(&self) -> u64 {
        fn of<E: Engine>(_: &super::Blocks<E>) -> u64 {
            E::MLP_VALUES
        }
        on_engine!(&self.blocks, blocks => of(blocks))
    }

    /// An upper bound on the bytes that [`Self::step`] takes beside weights, tables and caches.
    ///
    /// Saturates for sizes that no memory could hold.
    pub fn step_bytes_estimate(&self, sequences: &[StepSize]) -> u64 {
        let [.., f] = self.config.widths();
        let usual = self.values_per_row().saturating_add(f.saturating_mul(self.mlp_values()));
        let of_sequence =
            |size: &StepSize| size.new.saturating_mul(usual.saturating_add(self.adapted_values_per_row(size.weights)));
        let rows = sequences.iter().map(of_sequence).fold(0, u64::saturating_add);
        let (heads, lengths) = (self.config.heads(), sequences.iter().map(|size| (size.new, size.kept)));
        let lengths: Vec<(u64, u64)> = lengths.collect();
        let attention = on_engine!(&self.blocks, blocks => blocks.engine.cached_attention_values(heads, &lengths));
        rows.saturating_add(attention).saturating_mul(F32)
    }
}

/// What a step adds to one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// New rows.
    pub new: u64,
    /// Positions in front of them.
    pub kept: u64,
    /// How the weights are adapted for them.
    pub weights: WeightChange,
}

/// Rows of a pass, active rows of its blocks, active rows of its last block.
fn row_counts(layout: &PassLayout) -> [u64; 3] {
    let text = layout.lengths.iter().fold(0u64, |sum, &n| sum.saturating_add(u64::from(n)));
    let all = text.saturating_add(layout.hidden_prefix_rows() as u64);
    let usual = if layout.injection == Injection::Replace { text } else { all };
    [all, usual, layout.read_rows.as_ref().map_or(usual, |rows| rows.len() as u64)]
}
