//! Whose streams are taken, which may change while a node runs.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use libp2p::PeerId;

/// Peers whose streams are taken; everybody's without a list. Clones are one list.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowList(Arc<RwLock<Option<HashSet<PeerId>>>>);

impl AllowList {
    pub(crate) fn new(peers: Option<HashSet<PeerId>>) -> Self {
        Self(Arc::new(RwLock::new(peers)))
    }

    /// Takes the streams of these peers from now on.
    pub(crate) fn set(&self, peers: Option<HashSet<PeerId>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    pub(crate) fn allows(&self, peer: &PeerId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(|peers| peers.contains(peer))
    }
}
