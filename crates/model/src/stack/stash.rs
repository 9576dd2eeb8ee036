//! What a forward keeps for its backward.

use std::sync::Arc;

use petals_protocol::PassLayout;

use super::block::BlockStash;
use super::plan::PassPlan;

/// Saved tensors of a forward on the stack's device; dropping it frees them.
///
/// Attention probabilities, normed rows and activations are not saved but recomputed.
#[derive(Debug)]
pub struct Stash {
    pub(super) layout: PassLayout,
    pub(super) plan: Arc<PassPlan>,
    pub(super) blocks: Vec<BlockStash>,
}

impl Stash {
    /// Bytes of the saved tensors.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(BlockStash::bytes).sum()
    }

    /// The layout of the forward.
    pub fn layout(&self) -> &PassLayout {
        &self.layout
    }
}
