//! What the event loop shows to the handles.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use libp2p::{Multiaddr, PeerId, kad};
use petals_protocol::WireVersion;

use super::reach::Reachability;

/// Requests of the hash table that a node received since it started, by kind. Each is answered by one message, except for
/// `add_provider`, which has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DirectoryTraffic {
    /// Who is near a key?
    pub find_node: u64,
    /// Who serves a block?
    pub get_providers: u64,
    /// Note that I serve a block.
    pub add_provider: u64,
    /// What does a server say of itself?
    pub get_record: u64,
    /// Keep what I say of myself.
    pub put_record: u64,
}

impl DirectoryTraffic {
    /// Requests of all kinds.
    pub fn total(&self) -> u64 {
        self.find_node + self.get_providers + self.add_provider + self.get_record + self.put_record
    }

    pub(super) fn count(&mut self, request: &kad::InboundRequest) {
        match request {
            kad::InboundRequest::FindNode { .. } => self.find_node += 1,
            kad::InboundRequest::GetProvider { .. } => self.get_providers += 1,
            kad::InboundRequest::AddProvider { .. } => self.add_provider += 1,
            kad::InboundRequest::GetRecord { .. } => self.get_record += 1,
            kad::InboundRequest::PutRecord { .. } => self.put_record += 1,
        }
    }
}

/// A picture of the node's surroundings, kept up to date by the event loop.
#[derive(Debug, Default)]
pub(super) struct View {
    /// What the node listens on, each ending in its own `/p2p/ID`.
    pub(super) listen: Vec<Multiaddr>,
    /// What it tells others, each ending in its own `/p2p/ID`.
    pub(super) external: Vec<Multiaddr>,
    /// Whether others reach it.
    pub(super) reachability: Reachability,
    /// Announced addresses, and whether others reached it there.
    pub(super) announced: Vec<(Multiaddr, Option<bool>)>,
    /// Messages of the hash table that came in, as of a second ago.
    pub(super) directory: DirectoryTraffic,
    /// Connected peers and their last round trip.
    pub(super) peers: HashMap<PeerId, Option<Duration>>,
    /// Versions of block streams that connected peers accept, as they say: none if they serve no blocks.
    pub(super) wire: HashMap<PeerId, Vec<WireVersion>>,
    /// Connected peers that are members of the hash table.
    pub(super) members: HashSet<PeerId>,
    /// Members that were met before this start.
    pub(super) remembered: usize,
    /// Whether the local network is searched.
    pub(super) searches: bool,
    /// Peers to join the swarm through, as configured.
    pub(super) wanted: Vec<PeerId>,
    /// Why the last attempt to reach each of them failed, if it did.
    pub(super) failures: HashMap<PeerId, String>,
}

impl View {
    /// Whether one of the configured peers is connected, or none is configured.
    pub(super) fn has_joined(&self) -> bool {
        self.wanted.is_empty() || self.is_with_wanted()
    }

    /// Whether the node is together with a member of the swarm, whoever that is.
    pub(super) fn has_company(&self) -> bool {
        !self.members.is_empty() || self.is_with_wanted()
    }

    fn is_with_wanted(&self) -> bool {
        self.wanted.iter().any(|peer| self.peers.contains_key(peer))
    }
}
