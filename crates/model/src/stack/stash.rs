//! What a forward keeps for its backward.

use std::sync::Arc;

use petals_protocol::PassLayout;

use super::block::BlockStash;
use super::plan::PassPlan;
use crate::engine::burn::Burn;
use crate::engine::host::Host;
use crate::engine::{Engine, OnEngine, on_engine};

/// What a forward keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward.
    Nothing,
    /// What enters each block. The backward repeats the forward block by block, with one block's saved tensors at a time.
    Inputs,
    /// All that the backward needs.
    Everything,
}

/// Saved tensors of a forward on the stack's device; dropping it frees them.
///
/// Attention probabilities, normed rows and activations are not saved but recomputed.
#[derive(Debug)]
pub struct Stash {
    layout: PassLayout,
    kept: OnEngine<Kept<Host>, Kept<Burn>>,
}

/// What is saved on one engine.
#[derive(Debug)]
pub(super) struct Kept<E: Engine> {
    pub(super) plan: Arc<PassPlan<E>>,
    /// One of each block, in their order.
    pub(super) blocks: Vec<KeptBlock<E>>,
}

/// What is saved of one block.
#[derive(Debug)]
pub(super) enum KeptBlock<E: Engine> {
    /// What enters it, `[R, d]`.
    Input(E::Rows),
    Everything(Box<BlockStash<E>>),
}

impl<E: Engine> Kept<E> {
    fn bytes(&self) -> u64 {
        let of = |kept: &KeptBlock<E>| match kept {
            KeptBlock::Input(input) => E::bytes(input),
            KeptBlock::Everything(stash) => stash.bytes(),
        };
        self.blocks.iter().map(of).sum()
    }

    fn has_inputs_only(&self) -> bool {
        self.blocks.iter().all(|kept| matches!(kept, KeptBlock::Input(_)))
    }

    fn reduce(self) -> Self {
        let of = |kept| match kept {
            KeptBlock::Everything(stash) => KeptBlock::Input(stash.into_ends().0),
            input @ KeptBlock::Input(_) => input,
        };
        Self { blocks: self.blocks.into_iter().map(of).collect(), ..self }
    }
}

impl Stash {
    pub(super) fn new(layout: PassLayout, kept: OnEngine<Kept<Host>, Kept<Burn>>) -> Self {
        Self { layout, kept }
    }

    pub(super) fn into_parts(self) -> (PassLayout, OnEngine<Kept<Host>, Kept<Burn>>) {
        (self.layout, self.kept)
    }

    /// Bytes of the saved tensors.
    pub fn bytes(&self) -> u64 {
        on_engine!(&self.kept, kept => kept.bytes())
    }

    /// The layout of the forward.
    pub fn layout(&self) -> &PassLayout {
        &self.layout
    }

    /// Whether the backward repeats the forward because only what enters each block is saved.
    pub fn has_inputs_only(&self) -> bool {
        on_engine!(&self.kept, kept => kept.has_inputs_only())
    }

    /// Frees everything but what enters each block.
    #[must_use]
    pub fn reduce(self) -> Self {
        let kept = match self.kept {
            OnEngine::Host(kept) => OnEngine::Host(kept.reduce()),
            OnEngine::Burn(kept) => OnEngine::Burn(kept.reduce()),
        };
        Self { layout: self.layout, kept }
    }
}
