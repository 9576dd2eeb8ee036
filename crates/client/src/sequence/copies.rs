//! Which weights the servers of a model say that they have.

use std::collections::BTreeMap;
use std::time::Duration;

use petals_protocol::WeightsHash;
use petals_swarm::PeerId;

use super::{RemoteSequence, SequenceError};

/// Servers that have the same weights for a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedWeights {
    /// Of the model.
    pub block: u32,
    /// What they say; `None` for those that say nothing.
    pub hash: Option<WeightsHash>,
    /// Whether they may be used.
    pub used: bool,
    /// Who, and in which dtype they compute.
    pub servers: Vec<(PeerId, String)>,
}

impl RemoteSequence {
    /// Who has which weights now, block by block, those in use first.
    ///
    /// # Errors
    /// [`SequenceError::Lookup`].
    pub async fn served_weights(&self) -> Result<Vec<ServedWeights>, SequenceError> {
        self.view.refresh(Duration::ZERO).await?;
        let mut served: BTreeMap<_, Vec<(PeerId, String)>> = BTreeMap::new();
        for (peer, info) in self.view.servers() {
            let used = self.view.weights_exclusion(peer).is_none();
            for block in info.span.blocks().filter(|block| self.blocks.contains(*block)) {
                served.entry((block, !used, info.weights_of(block))).or_default().push((peer, info.dtype.clone()));
            }
        }
        let served = served.into_iter();
        Ok(served.map(|((block, not, hash), servers)| ServedWeights { block, hash, used: !not, servers }).collect())
    }
}
