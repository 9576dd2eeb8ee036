//! What a forward keeps for its backward.

use std::sync::Arc;

use petals_protocol::PassLayout;

use super::block::BlockStash;
use super::plan::PassPlan;
use crate::tensor::{Tensor, bytes};

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
    pub(super) layout: PassLayout,
    pub(super) plan: Arc<PassPlan>,
    /// One of each block, in their order.
    pub(super) blocks: Vec<Kept>,
}

/// What is saved of one block.
#[derive(Debug)]
pub(super) enum Kept {
    /// What enters it, `[R, d]`.
    Input(Tensor<2>),
    Everything(Box<BlockStash>),
}

impl Stash {
    /// Bytes of the saved tensors.
    pub fn bytes(&self) -> u64 {
        let of = |kept: &Kept| match kept {
            Kept::Input(input) => bytes(input),
            Kept::Everything(stash) => stash.bytes(),
        };
        self.blocks.iter().map(of).sum()
    }

    /// The layout of the forward.
    pub fn layout(&self) -> &PassLayout {
        &self.layout
    }

    /// Whether the backward repeats the forward because only what enters each block is saved.
    pub fn has_inputs_only(&self) -> bool {
        self.blocks.iter().all(|kept| matches!(kept, Kept::Input(_)))
    }

    /// Frees everything but what enters each block.
    #[must_use]
    pub fn reduce(self) -> Self {
        let of = |kept| match kept {
            Kept::Everything(stash) => Kept::Input(stash.into_ends().0),
            input @ Kept::Input(_) => input,
        };
        Self { blocks: self.blocks.into_iter().map(of).collect(), ..self }
    }
}
