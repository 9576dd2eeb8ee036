//! How much memory weights and passes take, known before anything is allocated.

use std::ops::Add;

use petals_protocol::{Injection, Module, PassLayout, Span, WeightChange};

use super::pass::PassError;
use super::{BlockStack, OnePlace, tables};
use crate::config::{
    AttentionDesign, BlockDesign, ExpertWeights, ExpertsDesign, HeadNorms, LayerDesign, MlpReads, ModelConfig,
    NormKind, Part,
};
use crate::device::Dtype;
use crate::engine::shapes::AttentionSizes;
use crate::engine::{Engine, on_engine};

const F32: u64 = 4;

/// Weights of one block: in matrices, kept in the chosen dtype, and in norms and biases, kept in f32.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlockWeights {
    matrices: u64,
    vectors: u64,
    /// Of matrices that choose experts.
    routers: u64,
}

impl BlockWeights {
    pub(crate) fn bytes(self, dtype: Dtype) -> u64 {
        dtype.bytes(self.matrices) + dtype.of_routers().bytes(self.routers) + self.vectors * F32
    }
}

impl Add for BlockWeights {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            matrices: self.matrices + other.matrices,
            vectors: self.vectors + other.vectors,
            routers: self.routers + other.routers,
        }
    }
}

impl ModelConfig {
    /// Weights of the blocks of a span that the model has, but for those of experts that stay in their files.
    pub(crate) fn span_weights(&self, span: Span, experts_in_files: bool) -> BlockWeights {
        let layers = span.blocks().filter_map(|block| self.layers.get(block as usize));
        let of_block = |layer: &LayerDesign| {
            let all = self.block_weights(*layer);
            let outside = self.experts_of(*layer).filter(|_| experts_in_files);
            let matrices = outside.map_or(0, |experts| self.expert_values(experts) * experts.count as u64);
            BlockWeights { matrices: all.matrices - matrices, ..all }
        };
        layers.map(of_block).fold(BlockWeights::default(), Add::add)
    }

    /// The parts of a block's projections that may be of few bits: of a mixture those of its first expert, and no router.
    pub(crate) fn quantisable_parts(&self, block: u32) -> Vec<Part> {
        let (inside, down) = match self.experts_of(self.layers[block as usize]) {
            None => self.mlp_of(block),
            Some(experts) => self.expert_of(block, 0, experts.width),
        };
        let attention = self.qkv_of(block).into_iter().chain([self.output_of(block)]);
        attention.chain(inside).chain([down]).collect()
    }

    /// Bytes that the weights of a block take on a device, in `dtype` ([`Dtype::Auto`] counts as f32; see [`Dtype::on`]).
    pub fn block_bytes(&self, layer: LayerDesign, dtype: Dtype) -> u64 {
        self.block_weights(layer).bytes(dtype)
    }

    /// Of [`Self::block_bytes`] what one row is multiplied by: all of a dense block, of a mixture the experts that a row goes through.
    pub fn active_block_bytes(&self, layer: LayerDesign, dtype: Dtype) -> u64 {
        self.weights_with(layer, |experts| experts.used).bytes(dtype)
    }

    /// Weights of one block.
    fn block_weights(&self, layer: LayerDesign) -> BlockWeights {
        self.weights_with(layer, |experts| experts.count)
    }

    /// Weights of one block, with so many of its experts.
    fn weights_with(&self, layer: LayerDesign, experts_held: fn(&ExpertsDesign) -> usize) -> BlockWeights {
        let [d, q, k, f] = self.widths();
        let when = |condition: bool, count: u64| if condition { count } else { 0 };
        let AttentionDesign { qkv_bias, output_bias, head_norms, sinks, .. } = self.block.attention;
        let heads = match head_norms {
            HeadNorms::None => 0,
            HeadNorms::PerHead => 2 * self.head_dim as u64,
            HeadNorms::Whole => q + k,
        };
        let norms = self.block.norms;
        let before = when(norms.before(), if self.block.mlp_has_own_norm() { 2 } else { 1 });
        let of_norm = d * if self.block.norm == NormKind::Layer { 2 } else { 1 };
        let vectors = (before + when(norms.after(), 2)) * of_norm
            + when(qkv_bias, q + 2 * k)
            + when(output_bias, d)
            + when(sinks, self.num_attention_heads as u64)
            + heads;
        let attention = BlockWeights { matrices: d * (2 * q + 2 * k), vectors, routers: 0 };
        let mlp = |width: u64, bias: bool| {
            let inside = self.block.mlp.sides() as u64 * width;
            BlockWeights { matrices: d * (inside + width), vectors: when(bias, inside + d), routers: 0 }
        };
        let network = match self.experts_of(layer) {
            None => mlp(f, self.block.mlp.bias),
            Some(experts) => {
                let (count, one) = (experts.count as u64, mlp(experts.width as u64, experts.bias));
                let held = experts_held(&experts) as u64;
                let held = BlockWeights { matrices: held * one.matrices, vectors: held * one.vectors, routers: 0 };
                let router =
                    BlockWeights { routers: d * count, vectors: when(experts.bias, count), ..Default::default() };
                let shared = experts.shared.map(|shared| {
                    let gate = BlockWeights { routers: when(shared.gated, d), ..Default::default() };
                    mlp(shared.width as u64, false) + gate
                });
                held + router + shared.unwrap_or_default()
            }
        };
        attention + network
    }

    /// Values of the matrices of one expert.
    fn expert_values(&self, experts: ExpertsDesign) -> u64 {
        self.hidden_size as u64 * (self.block.mlp.sides() as u64 + 1) * experts.width as u64
    }

    /// Values of a row where it is widest.
    fn widest_row(&self) -> u64 {
        let [d, q, k, f] = self.widths();
        let experts = self
            .block
            .experts
            .map_or(0, |experts| experts.width.max(experts.shared.map_or(0, |shared| shared.width)) as u64);
        (self.block.mlp.sides() as u64 * f.max(experts)).max(q).max(2 * k).max(d)
    }

    /// Values of the largest matrix of a block.
    pub(super) fn largest_weight(&self) -> u64 {
        let [d, q, k, f] = self.widths();
        let widest = self.block.experts.map_or(f, |experts| {
            let shared = experts.shared.map_or(0, |shared| shared.width);
            let dense = if self.layers.iter().all(|layer| layer.experts) { 0 } else { self.intermediate_size };
            experts.width.max(shared).max(dense) as u64
        });
        d * (self.block.mlp.sides() as u64 * widest).max(q).max(2 * k)
    }

    fn widths(&self) -> [u64; 4] {
        [self.hidden_size, self.query_width(), self.key_width(), self.intermediate_size].map(|n| n as u64)
    }

    /// Values of f32 that the stash of what is behind attention has of each active row.
    fn inside_values(&self, layer: LayerDesign) -> u64 {
        let (sides, f) = (self.block.mlp.sides() as u64, self.intermediate_size as u64);
        let Some(experts) = self.experts_of(layer) else { return sides * f };
        // Of each of its experts a row has its number and weight.
        let routed = experts.routed(sides * experts.width as u64 + 2);
        let of_all = if experts.weights == ExpertWeights::OfAll { experts.count as u64 } else { 0 };
        let shared = experts.shared.map_or(0, |shared| sides * shared.width as u64 + u64::from(shared.gated));
        routed + of_all + shared
    }

    /// Values of f32 that the inside of what is behind attention has of each active row, as far as it is there at a time.
    fn inside_width(&self) -> u64 {
        let of_layer = |layer: &LayerDesign| match self.experts_of(*layer) {
            None => self.intermediate_size as u64,
            Some(experts) => {
                let shared = experts.shared.map_or(0, |shared| shared.width as u64);
                experts.routed(experts.width as u64) + shared + experts.count as u64
            }
        };
        self.layers.iter().map(of_layer).max().unwrap_or_default()
    }
}

impl BlockStack {
    /// Bytes that the whole stash of such a pass takes: exactly what [`super::Stash::bytes`] will say.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        self.places().map(|place| place.stash_bytes_estimate(layout)).fold(0, u64::saturating_add)
    }

    /// Bytes of a stash that has only what enters each block: exactly what [`super::Stash::bytes`] will say.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn input_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        self.places().map(|place| place.input_bytes_estimate(layout)).fold(0, u64::saturating_add)
    }

    /// An upper bound on the bytes of one block's part of the whole stash: what a backward from inputs alone takes beside
    /// [`Self::activation_bytes_estimate`].
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn block_stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        self.places().map(|place| place.block_stash_bytes_estimate(layout)).max().unwrap_or_default()
    }

    /// An upper bound on the bytes that a pass, forward or backward, takes beside weights, stash and the vectors that it
    /// is given; without what an allocator loses to fragments. One device computes after the other.
    ///
    /// Saturates for layouts that no memory could hold.
    pub fn activation_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        self.places().map(|place| place.activation_bytes_estimate(layout)).max().unwrap_or_default()
    }

    /// An upper bound on the bytes that [`Self::step`] takes beside weights, tables and caches.
    ///
    /// Saturates for sizes that no memory could hold.
    pub fn step_bytes_estimate(&self, sequences: &[StepSize]) -> u64 {
        self.places().map(|place| place.step_bytes_estimate(sequences)).max().unwrap_or_default()
    }
}

/// What passes take where some of a stack's blocks are: nothing where there are none of the pass.
impl OnePlace<'_> {
    /// As [`BlockStack::stash_bytes_estimate`].
    pub fn stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [_, usual, last] = row_counts(layout);
        let of_block = |(block, active): (&LayerDesign, u64)| self.block_stash_values(layout, *block, active);
        let Some(own) = self.part.span.intersect(layout.span) else { return 0 };
        let active = own.blocks().map(|number| if number + 1 == layout.span.end() { last } else { usual });
        let values = self.layers_of(own).iter().zip(active).map(of_block).fold(0, u64::saturating_add);
        values.saturating_mul(F32).saturating_add(self.table_bytes(layout, own))
    }

    fn layers_of(&self, span: Span) -> &[LayerDesign] {
        self.config.layers.get(span.start() as usize..span.end() as usize).unwrap_or_default()
    }

    /// Values of the whole stash of one block, `active` rows of which are active.
    fn block_stash_values(&self, layout: &PassLayout, layer: LayerDesign, active: u64) -> u64 {
        let [per_row, per_active] = self.stash_widths(layout, layer);
        let [all, ..] = row_counts(layout);
        let rows = all.saturating_mul(per_row).saturating_add(self.given_values(layout));
        rows.saturating_add(active.saturating_mul(per_active))
    }

    /// As [`BlockStack::input_bytes_estimate`].
    pub fn input_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [d, ..] = self.config.widths();
        let [all, ..] = row_counts(layout);
        let Some(own) = self.part.span.intersect(layout.span) else { return 0 };
        let values = all.saturating_mul(d).saturating_mul(own.len() as u64).saturating_mul(F32);
        values.saturating_add(self.table_bytes(layout, own))
    }

    /// As [`BlockStack::block_stash_bytes_estimate`].
    pub fn block_stash_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let [_, usual, _] = row_counts(layout);
        let of_block = |layer: &LayerDesign| self.block_stash_values(layout, *layer, usual);
        let Some(own) = self.part.span.intersect(layout.span) else { return 0 };
        self.layers_of(own).iter().map(of_block).max().unwrap_or_default().saturating_mul(F32)
    }

    /// Values that a block's stash has of each row, and of each active row beside those.
    fn stash_widths(&self, layout: &PassLayout, layer: LayerDesign) -> [u64; 2] {
        let [d, q, k, _] = self.config.widths();
        let BlockDesign { attention, norms, mlp_reads, .. } = self.config.block;
        let head_norms = u64::from(attention.head_norms != HeadNorms::None);
        let (unscaled, attended) = match layout.weights {
            WeightChange::None => (false, false),
            WeightChange::LowRank { modules, .. } => (false, modules.contains(Module::Output)),
            WeightChange::Scales { modules } => {
                (modules.contains(Module::Key) || modules.contains(Module::Value), false)
            }
        };
        let rows = d + 2 * k + head_norms * k + u64::from(unscaled) * 2 * k;
        let residual = u64::from(mlp_reads == MlpReads::Residual) * d + u64::from(norms.after()) * 2 * d;
        [rows, q + residual + self.config.inside_values(layer) + head_norms * q + u64::from(attended) * q]
    }

    /// Values of keys and values that a block's stash has in front of those of its rows.
    fn given_values(&self, layout: &PassLayout) -> u64 {
        let [_, _, k, _] = self.config.widths();
        let given = if layout.injection == Injection::KeysValues { u64::from(layout.prefix_len) } else { 0 };
        given.saturating_mul(2 * k)
    }

    /// Bytes of tables that a backward needs again.
    fn table_bytes(&self, layout: &PassLayout, own: Span) -> u64 {
        let of_block = tables::lasting_bytes(&layout.block_tables(self.config.block_widths()));
        of_block.saturating_mul(own.len() as u64)
    }

    /// As [`BlockStack::activation_bytes_estimate`].
    pub fn activation_bytes_estimate(&self, layout: &PassLayout) -> u64 {
        let Some(own) = self.part.span.intersect(layout.span) else { return 0 };
        let f = self.config.inside_width();
        let [all, usual, _] = row_counts(layout);
        let active = f.saturating_mul(self.mlp_values());
        let rows = all.saturating_mul(self.values_per_row()).saturating_add(usual.saturating_mul(active));
        let rows = rows.saturating_add(all.saturating_mul(self.adapted_values_per_row(layout.weights)));
        // As they are given, on the device, and their gradients.
        let of_block = layout.block_values(self.config.block_widths()) as u64;
        let tables = of_block.saturating_mul(3 * own.len() as u64).saturating_add(self.given_values(layout));
        let sizes = AttentionSizes {
            longest: u64::from(layout.lengths.iter().copied().max().unwrap_or_default()),
            prefix: u64::from(layout.prefix_len),
            examples: layout.lengths.len() as u64,
            heads: self.config.heads(),
        };
        let attention = on_engine!(&self.part.blocks, blocks => blocks.engine.attention_values(sizes));
        let (dtype, largest) = (self.part.place.dtype, self.config.largest_weight());
        let weight = on_engine!(&self.part.blocks, blocks => blocks.engine.weight_values(dtype, largest));
        [tables, attention, weight].iter().fold(rows, |sum, part| sum.saturating_add(*part)).saturating_mul(F32)
    }

    /// Values of each row: inputs, outputs, gradients, norms and residuals; queries, keys and values with their gradients, before and
    /// after norm and rotation; the angles.
    fn values_per_row(&self) -> u64 {
        let [d, q, k, _] = self.config.widths();
        // Rows that are gathered for an expert, what it makes of them, and their gradients.
        let gathered = self.config.block.experts.map_or(0, |experts| experts.routed(4 * d));
        d.saturating_mul(14)
            .saturating_add(gathered)
            .saturating_add((q + k).saturating_mul(8) + 4 * self.config.head_dim as u64)
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
        on_engine!(&self.part.blocks, blocks => of(blocks))
    }

    /// As [`BlockStack::step_bytes_estimate`], for a step that goes through these blocks.
    pub fn step_bytes_estimate(&self, sequences: &[StepSize]) -> u64 {
        let f = self.config.inside_width();
        let usual = self.values_per_row().saturating_add(f.saturating_mul(self.mlp_values()));
        let of_sequence =
            |size: &StepSize| size.new.saturating_mul(usual.saturating_add(self.adapted_values_per_row(size.weights)));
        let rows = sequences.iter().map(of_sequence).fold(0, u64::saturating_add);
        let (heads, lengths) = (self.config.heads(), sequences.iter().map(|size| (size.new, size.kept)));
        let lengths: Vec<(u64, u64)> = lengths.collect();
        let attention = on_engine!(&self.part.blocks, blocks => blocks.engine.cached_attention_values(heads, &lengths));
        let (dtype, largest) = (self.part.place.dtype, self.config.largest_weight());
        let weight = on_engine!(&self.part.blocks, blocks => blocks.engine.weight_values(dtype, largest));
        rows.saturating_add(attention).saturating_add(weight).saturating_mul(F32)
    }
}

impl BlockStack {
    /// Refuses so many rows if a device of these blocks has no place for a matrix of them.
    pub(super) fn check_rows(&self, rows: u64) -> Result<(), PassError> {
        let bytes = rows.saturating_mul(self.config.widest_row()).saturating_mul(F32);
        let refuses = |part: &super::Part| {
            let limit = part.place.device.largest_buffer().filter(|limit| bytes > *limit)?;
            Some(PassError::Buffer { device: part.place.device.to_string(), bytes, limit })
        };
        self.parts.iter().find_map(refuses).map_or(Ok(()), Err)
    }

    /// As [`Self::check_rows`], for all rows of a pass.
    pub(super) fn check_layout(&self, layout: &PassLayout) -> Result<(), PassError> {
        let [all, ..] = row_counts(layout);
        self.check_rows(all.saturating_add(u64::from(layout.prefix_len)))
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
