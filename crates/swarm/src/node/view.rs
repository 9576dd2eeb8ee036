//! What the event loop shows to the handles.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use super::reach::Reachability;

/// A picture of the node's surroundings, kept up to date by the event loop.
#[derive(Debug, Default)]
pub(super) struct View {
    /// What the node listens on, each ending in its own `/p2p/ID`.
    pub(super) listen: Vec<Multiaddr>,
    /// What it tells others, each ending in its own `/p2p/ID`.
    pub(super) external: Vec<Multiaddr>,
    /// Whether others reach it.
    pub(super) reachability: Reachability,
    /// Connected peers and their last round trip.
    pub(super) peers: HashMap<PeerId, Option<Duration>>,
    /// Peers to join the swarm through, as configured.
    pub(super) wanted: Vec<PeerId>,
    /// Why the last attempt to reach each of them failed, if it did.
    pub(super) failures: HashMap<PeerId, String>,
}

impl View {
    /// Whether one of the configured peers is connected, or none is configured.
    pub(super) fn has_joined(&self) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|peer| self.peers.contains_key(peer))
    }
}
