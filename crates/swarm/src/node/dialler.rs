//! Keeps connections to the configured peers, with growing pauses between attempts.

use std::time::Duration;

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::addresses::split_peer;

/// Pause after the first failure: servers and their bootstrap node are often started together.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause: a bootstrap node that returns is found within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Dialler {
    targets: Vec<Target>,
}

#[derive(Debug)]
struct Target {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    pause: Duration,
    /// When to dial; `None` while connected.
    due: Option<Instant>,
}

impl Dialler {
    /// One target per peer; several addresses may belong to one.
    pub(super) fn new(local: PeerId, addresses: &[Multiaddr]) -> Self {
        let mut targets: Vec<Target> = Vec::new();
        for (peer, address) in addresses.iter().filter_map(|address| split_peer(address).ok()) {
            match targets.iter_mut().find(|target| target.peer == peer) {
                Some(target) => target.addresses.push(address),
                // One list of peers may serve all nodes of a swarm, the listed ones included.
                None if peer == local => {}
                None => {
                    let due = Some(Instant::now());
                    targets.push(Target { peer, addresses: vec![address], pause: FIRST_PAUSE, due });
                }
            }
        }
        Self { targets }
    }

    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.targets.iter().map(|target| target.peer).collect()
    }

    /// The addresses of a configured peer.
    pub(super) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.targets.iter().find(|target| target.peer == *peer).map_or(&[], |target| &target.addresses)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.targets.iter().filter_map(|target| target.due).min()
    }

    /// The attempts to make now. Each sets the time of the next one, should nothing be heard of it.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<DialOpts> {
        let due = self.targets.iter_mut().filter(|target| target.due.is_some_and(|due| due <= now));
        due.map(|target| {
            target.due = Some(now + target.pause);
            target.pause = (target.pause * 2).min(LONGEST_PAUSE);
            DialOpts::peer_id(target.peer)
                .condition(PeerCondition::NotDialing)
                .addresses(target.addresses.clone())
                .build()
        })
        .collect()
    }

    pub(super) fn connected(&mut self, peer: &PeerId) {
        if let Some(target) = self.find(peer) {
            target.due = None;
            target.pause = FIRST_PAUSE;
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(target) = self.find(peer) {
            target.due = Some(now + target.pause);
        }
    }

    fn find(&mut self, peer: &PeerId) -> Option<&mut Target> {
        self.targets.iter_mut().find(|target| target.peer == *peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_repeated_with_growing_pauses_until_connected() {
        let (local, peer) = (PeerId::random(), PeerId::random());
        let address = |peer| format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}").parse().unwrap();
        let mut dialler = Dialler::new(local, &[address(peer), address(peer), address(local)]);
        assert_eq!((dialler.peers(), dialler.addresses(&peer).len()), (vec![peer], 2));
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(dialler.take_due(now).len(), 1);
            assert!(dialler.take_due(now).is_empty());
            let next = dialler.next_due().unwrap();
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses.is_sorted() && pauses[0] == FIRST_PAUSE && pauses[7] == LONGEST_PAUSE, "{pauses:?}");
        dialler.connected(&peer);
        assert_eq!(dialler.next_due(), None);
        dialler.disconnected(&peer, now);
        assert_eq!(dialler.next_due(), Some(now + FIRST_PAUSE));
    }
}
