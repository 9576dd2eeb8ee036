//! Two nodes under one identity. They overwrite each other's records, and clients find now one, now the other; neither notices by
//! itself.
//!
//! A record tells when its node started. If the directory has one of this identity that another node wrote, that node may be an earlier
//! run of this one which ended without a word. It is not if it answers, or if it goes on writing.

use std::time::Duration;

use libp2p::Multiaddr;
use petals_protocol::ModelId;

use crate::addresses::without_peer;
use crate::directory::{DirectoryEntry, namesake};
use crate::node::SwarmHandle;

/// Longest wait for an answer at one address.
const ANSWER: Duration = Duration::from_secs(3);
/// Addresses that are tried.
const MOST: usize = 8;

/// Another node under this node's identity.
#[derive(Debug, Clone, PartialEq)]
pub struct Namesake {
    /// What it says of itself.
    pub entry: DirectoryEntry,
    /// Whether it started before this node, as far as their clocks tell.
    pub came_first: bool,
}

impl SwarmHandle {
    /// What the directory has of this node's identity, if another node wrote it: perhaps one that is there, see [`Self::is_there`], or an
    /// earlier run of this one.
    pub async fn namesake(&self, model: &ModelId) -> Option<Namesake> {
        let other = namesake(self, model).await?;
        let came_first = other.info.started_ms.is_none_or(|theirs| theirs < self.started_ms());
        let entry = DirectoryEntry { peer: other.peer, info: other.info, addresses: other.addresses };
        Some(Namesake { entry, came_first })
    }

    /// Whether another node answers under this node's identity where that record says. One that this node cannot reach shows itself only
    /// by writing its record again.
    pub async fn is_there(&self, other: &Namesake) -> bool {
        let own: Vec<Multiaddr> =
            self.listen_addresses().iter().chain(&self.external_addresses()).map(without_peer).collect();
        let foreign = other.entry.addresses.iter().filter(|address| !own.contains(&without_peer(address)));
        for address in foreign.take(MOST) {
            if self.meets_namesake(address.clone(), ANSWER).await {
                return true;
            }
        }
        false
    }
}
