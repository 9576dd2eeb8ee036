//! Whether the servers of records are there at all.
//!
//! A record costs nothing, and whoever chooses blocks before it has any weights cannot check what servers compute. But it can connect to them: the
//! handshake shows that somebody with that identity is at an address of the record. Only those that a choice hangs on are tried: who is the only
//! one to claim a block.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::StreamExt;
use petals_protocol::{ServerState, Span};
use petals_swarm::{DirectoryEntry, PeerId, SwarmHandle, network_of};

use super::coverage::neighbourhood;
use crate::lock::lock;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Servers that are tried for one choice, and how many at a time. Each is a server that alone claims a block.
const MOST_TRIED: usize = 64;
const AT_A_TIME: usize = 16;
/// How long an attempt counts.
const REMEMBERED: Duration = Duration::from_secs(300);

/// Who was reached, and who was not.
#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<HashMap<PeerId, (Instant, bool)>>);

impl Presence {
    /// Those of `entries` that a choice may be founded on: without servers that alone claim a block and cannot be reached.
    pub(crate) async fn present(&self, swarm: &SwarmHandle, mut entries: Vec<DirectoryEntry>) -> Vec<DirectoryEntry> {
        // Whom it does not reach counts no more, and then somebody else may be the only one.
        for _ in 0..2 {
            let now = Instant::now();
            lock(&self.0).retain(|_, (at, _)| now.saturating_duration_since(*at) < REMEMBERED);
            let tried = |peer: &PeerId| lock(&self.0).contains_key(peer);
            let alone = alone(&entries);
            let doubtful: Vec<DirectoryEntry> = entries
                .iter()
                .filter(|entry| alone.contains(&entry.peer) && !tried(&entry.peer))
                .take(MOST_TRIED)
                .cloned()
                .collect();
            if !doubtful.is_empty() {
                let attempts = doubtful.into_iter().map(|entry| {
                    let swarm = swarm.clone();
                    async move { (entry.peer, is_there(&swarm, &entry).await) }
                });
                let attempts = futures::stream::iter(attempts).buffer_unordered(AT_A_TIME);
                let found: Vec<(PeerId, bool)> = attempts.collect().await;
                lock(&self.0).extend(found.into_iter().map(|(peer, there)| (peer, (now, there))));
            }
            let known = lock(&self.0).clone();
            entries.retain(|entry| known.get(&entry.peer).is_none_or(|(_, there)| *there));
        }
        entries
    }
}

/// Whether somebody is at an address of a record who is who it says.
async fn is_there(swarm: &SwarmHandle, entry: &DirectoryEntry) -> bool {
    if swarm.is_connected(&entry.peer) || entry.peer == swarm.local_peer() {
        return true;
    }
    let opened = swarm.open_stream(entry.peer, &entry.addresses, CONNECT).await;
    // A server that takes no streams of this node is there all the same.
    let there = opened.is_ok() || swarm.is_connected(&entry.peer);
    if !there {
        tracing::info!(peer = %entry.peer, span = %entry.info.span, "a server cannot be reached and does not count where blocks are chosen");
    }
    there
}

/// Servers that are the only ones, by network, to claim some block.
fn alone(entries: &[DirectoryEntry]) -> HashSet<PeerId> {
    // Of each block the networks that claim it, as far as that matters, and who is in the first.
    let mut claimed: HashMap<u32, (Option<std::net::IpAddr>, Vec<PeerId>, bool)> = HashMap::new();
    for entry in entries {
        if !matches!(entry.info.state, ServerState::Online | ServerState::Joining | ServerState::Draining) {
            continue;
        }
        let network = network_of(&entry.addresses).map(neighbourhood);
        let spans = [Some(entry.info.span), entry.info.moving_to];
        for block in spans.into_iter().flatten().flat_map(known_blocks) {
            let (first, peers, shared) = claimed.entry(block).or_insert_with(|| (network, Vec::new(), false));
            let same = network.is_some() && network == *first;
            if peers.is_empty() || same {
                peers.push(entry.peer);
            } else {
                *shared = true;
            }
        }
    }
    claimed.into_values().filter(|(_, _, shared)| !shared).flat_map(|(_, peers, _)| peers).collect()
}

/// Blocks that models have; a record may claim four thousand million.
fn known_blocks(span: Span) -> std::ops::Range<u32> {
    const MOST: u32 = 1024;
    span.start().min(MOST)..span.end().min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::{Fingerprint, ModelId, ServerInfo};

    fn entry(span: (u32, u32), address: &str) -> DirectoryEntry {
        let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
        let info = ServerInfo::new(model, Span::new(span.0, span.1).unwrap(), ServerState::Online);
        DirectoryEntry { peer: PeerId::random(), info, addresses: vec![address.parse().unwrap()] }
    }

    #[test]
    fn whoever_is_the_only_one_to_claim_a_block_is_tried() {
        let [near, local] = ["/ip4/203.0.113.1/tcp/1", "/ip4/127.0.0.1/tcp/1"];
        let entries = [
            entry((0, 4), local),
            entry((0, 2), local),
            entry((4, 8), near),
            entry((4, 8), "/ip4/203.0.113.200/tcp/1"),
            entry((6, 4_000_000_000), local),
        ];
        let found = alone(&entries);
        let is_found: Vec<bool> = entries.iter().map(|entry| found.contains(&entry.peer)).collect();
        // Block 2 and 3; nobody; blocks 4 and 5 as one network; what the model may not even have.
        assert_eq!(is_found, [true, false, true, true, true]);
    }
}
