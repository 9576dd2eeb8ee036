//! What a forward keeps for its backward.

use std::sync::Arc;

use petals_protocol::{PassLayout, Span};

use super::block::KeptBlock;
use super::plan::PassPlan;
use super::tables::BlockTables;
use crate::device::Device;
use crate::engine::{Engine, OnEngine, PerEngine, map_engine, on_engine};

/// Saved tensors of a forward on the stack's devices; dropping it frees them.
///
/// Attention probabilities, normed rows and activations are not saved but recomputed.
#[derive(Debug)]
pub struct Stash {
    layout: PassLayout,
    /// In the order of their blocks.
    parts: Vec<StashPart>,
}

/// What one device has of it.
#[derive(Debug)]
pub(super) struct StashPart {
    pub(super) span: Span,
    pub(super) device: Device,
    pub(super) kept: OnEngine<Stashes>,
}

/// What is saved: [`Kept`].
pub(super) enum Stashes {}

impl PerEngine for Stashes {
    type On<E: Engine> = Kept<E>;
}

/// What is saved on one engine.
#[derive(Debug)]
pub(super) struct Kept<E: Engine> {
    pub(super) plan: Arc<PassPlan<E>>,
    /// One of each block, in their order.
    pub(super) blocks: Vec<KeptBlock<E>>,
    /// One of each block, or none: keys, values and changes of weights, which the backward needs again.
    pub(super) tables: Vec<BlockTables<E>>,
}

impl<E: Engine> Kept<E> {
    fn bytes(&self) -> u64 {
        let tables = self.tables.iter().map(BlockTables::lasting_bytes).sum::<u64>();
        tables + self.blocks.iter().map(KeptBlock::bytes).sum::<u64>()
    }

    fn has_inputs_only(&self) -> bool {
        self.blocks.iter().all(|kept| matches!(kept, KeptBlock::Input(_)))
    }

    fn reduce(self) -> Self {
        Self { blocks: self.blocks.into_iter().map(KeptBlock::reduce).collect(), ..self }
    }
}

impl Stash {
    pub(super) fn new(layout: PassLayout, parts: Vec<StashPart>) -> Self {
        Self { layout, parts }
    }

    pub(super) fn into_parts(self) -> (PassLayout, Vec<StashPart>) {
        (self.layout, self.parts)
    }

    /// Bytes of the saved tensors.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| on_engine!(&part.kept, kept => kept.bytes())).sum()
    }

    /// The layout of the forward.
    pub fn layout(&self) -> &PassLayout {
        &self.layout
    }

    /// Whether the backward repeats the forward because only what enters each block is saved.
    pub fn has_inputs_only(&self) -> bool {
        self.parts.iter().all(|part| on_engine!(&part.kept, kept => kept.has_inputs_only()))
    }

    /// Frees everything but what enters each block.
    #[must_use]
    pub fn reduce(self) -> Self {
        let reduce = |part: StashPart| StashPart { kept: map_engine!(part.kept, kept => kept.reduce()), ..part };
        Self { layout: self.layout, parts: self.parts.into_iter().map(reduce).collect() }
    }
}
