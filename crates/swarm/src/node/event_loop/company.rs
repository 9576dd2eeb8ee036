//! Whom this node is together with: members of its swarm, those of the local network, and those that it met before.

use std::collections::HashSet;

use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, mdns};
use tokio::time::Instant;

use super::EventLoop;
use crate::addresses::{is_circuit, short};
use crate::node::members;

/// Nodes of the local network that are dialled because multicast found them. Others' swarms may be there too.
const MAX_NEIGHBOURS: usize = 64;

impl EventLoop {
    /// A connected peer turned out to be a member of the hash table, which says that it is reached at `addresses`.
    pub(super) fn on_member(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        let now = Instant::now();
        let dialled = self.remotes.values().filter(|remote| remote.peer == peer && remote.dialled);
        // Where it was reached is where it is found again.
        let mut known: Vec<Multiaddr> = dialled.map(|remote| remote.address.clone()).collect();
        known.extend(addresses.iter().cloned());
        known.retain(|address| !is_circuit(address));
        let mut seen = HashSet::new();
        known.retain(|address| seen.insert(address.clone()));
        // One that tells no address that others believe is asked where this node reached it.
        if addresses.is_empty()
            && let Some(address) = known.first()
        {
            self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
        }
        self.members.met(peer, known, now);
        self.dialler.set_company(true, now);
        self.view.send_if_modified(|view| view.members.insert(peer));
    }

    /// A peer is gone, or is no member of the hash table any more.
    pub(super) fn on_member_gone(&mut self, peer: &PeerId) {
        let alone =
            self.view.send_if_modified(|view| view.members.remove(peer)) && self.view.borrow().members.is_empty();
        if alone {
            self.dialler.set_company(false, Instant::now());
        }
    }

    /// From now on these peers may open block streams, or all.
    pub(super) fn allow(&mut self, peers: Option<HashSet<PeerId>>) {
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        let before: Vec<PeerId> = connected.into_iter().filter(|peer| self.allowed.allows(peer)).collect();
        self.allowed.set(peers);
        for peer in before.iter().filter(|peer| !self.allowed.allows(peer)) {
            tracing::info!(
                peer = short(peer),
                "not on the list of those who may use this node any more, disconnecting"
            );
            let _ = self.swarm.disconnect_peer_id(*peer);
        }
    }

    /// Writes down who was met.
    pub(super) fn keep_members(&mut self, now: Instant) {
        if let Some(news) = self.members.take_due(now) {
            tokio::task::spawn_blocking(move || members::write(news));
        }
    }

    /// The same at the end.
    pub(super) async fn keep_members_now(&mut self) {
        if let Some(news) = self.members.take_news() {
            let _ = tokio::task::spawn_blocking(move || members::write(news)).await;
        }
    }

    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        let mdns::Event::Discovered(found) = event else { return };
        for (peer, address) in found.into_iter().take(MAX_NEIGHBOURS) {
            if self.swarm.connected_peers().count() >= MAX_NEIGHBOURS || self.swarm.is_connected(&peer) {
                continue;
            }
            tracing::debug!(peer = short(&peer), %address, "found a node on the local network");
            // Whether it belongs to this swarm shows when it says what it speaks.
            let attempt = DialOpts::peer_id(peer).addresses(vec![address]).build();
            if let Err(error) = self.swarm.dial(attempt) {
                self.on_dial_error(Some(peer), &error);
            }
        }
    }
}
