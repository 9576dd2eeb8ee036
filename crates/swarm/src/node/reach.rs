//! Whether others reach this node, and through which relays it makes itself reachable if not.
//!
//! AutoNAT asks peers to dial the addresses at which they see this node. If one of them could, the node is reachable. If
//! some tried and none could, it is not, and asks relays that it meets for a place. An address of the public internet counts
//! more than one of a private network: a neighbour's word says nothing of the world, but where there is nothing but a
//! private network its addresses decide.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::addresses::{is_circuit, is_global, split_peer, without_peer};

/// Relays that are asked for a place. Two, so that the death of one goes unnoticed.
const WANTED_RELAYS: usize = 2;
/// Relays that are remembered, and addresses whose probes are.
const MAX_KNOWN: usize = 64;
/// Pause after a relay refused or went away, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Whether others reach a node directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reachability {
    /// Nobody has tried yet.
    #[default]
    Unknown,
    /// Others have connected to it, or its operator says that they can.
    Direct,
    /// Others have tried in vain.
    Unreachable,
}

#[derive(Debug, Default)]
pub(super) struct Reach {
    /// The operator announces addresses, or the node does not leave its machine: there is nothing to find out.
    given: bool,
    /// Whether relays are asked when nobody reaches this node.
    auto_relay: bool,
    /// Addresses that the operator announces, and what became of their probes.
    announced: Vec<(Multiaddr, Option<bool>)>,
    /// Those of them that somebody dialled in vain, and that are tried a second time.
    again: HashSet<Multiaddr>,
    /// What became of probes, by address.
    probes: HashMap<Multiaddr, bool>,
    /// Addresses that a router or a probe confirmed.
    confirmed: HashSet<Multiaddr>,
    /// Somebody connected to this node who knew no other way.
    was_reached: bool,
    relays: HashMap<PeerId, Relay>,
    reservations: HashMap<ListenerId, PeerId>,
}

#[derive(Debug)]
struct Relay {
    address: Multiaddr,
    /// Named by the operator, or one of the peers to join through.
    preference: u8,
    pause: Duration,
    due: Instant,
}

/// How a relay came to be known; the lower, the more it is trusted to stay.
const NAMED: u8 = 0;
const CONFIGURED: u8 = 1;
const MET: u8 = 2;

impl Reach {
    /// `given`: nothing is to be found out. `named`: relays to use in any case.
    pub(super) fn new(given: bool, auto_relay: bool, named: &[Multiaddr], now: Instant) -> Self {
        let relay = |address: &Multiaddr| {
            let (peer, address) = split_peer(address).ok()?;
            Some((peer, Relay { address, preference: NAMED, pause: FIRST_PAUSE, due: now }))
        };
        Self { given, auto_relay, relays: named.iter().filter_map(relay).collect(), ..Self::default() }
    }

    /// Addresses at which others are to be asked for this node.
    pub(super) fn expect(&mut self, announced: &[Multiaddr]) {
        self.announced = announced.iter().take(MAX_KNOWN).map(|address| (without_peer(address), None)).collect();
    }

    /// The announced addresses, and whether others reached this node there.
    pub(super) fn announced(&self) -> Vec<(Multiaddr, Option<bool>)> {
        self.announced.clone()
    }

    pub(super) fn reachability(&self) -> Reachability {
        if self.given {
            return Reachability::Direct;
        }
        let of_scope = |global: bool| {
            let mut outcomes = self.probes.iter().filter(move |(address, _)| is_global(address) == global);
            let any = outcomes.clone().next().is_some();
            any.then(|| outcomes.any(|(_, reached)| *reached))
        };
        if self.confirmed.iter().any(is_global) {
            return Reachability::Direct;
        }
        match of_scope(true).or_else(|| of_scope(false)) {
            Some(true) => Reachability::Direct,
            Some(false) => Reachability::Unreachable,
            None if self.confirmed.is_empty() => Reachability::Unknown,
            None => Reachability::Direct,
        }
    }

    /// Whether this node may carry the traffic of others: at least somebody reaches it.
    pub(super) fn can_relay(&self) -> bool {
        match self.reachability() {
            Reachability::Direct => true,
            Reachability::Unknown => self.was_reached,
            Reachability::Unreachable => false,
        }
    }

    /// Whether others reach this node through relays only.
    pub(super) fn is_relayed(&self) -> bool {
        self.reachability() == Reachability::Unreachable && !self.reservations.is_empty()
    }

    /// Addresses that are told beside those listened on.
    pub(super) fn confirmed(&self) -> impl Iterator<Item = &Multiaddr> {
        self.confirmed.iter()
    }

    /// A peer tried to dial one of this node's addresses. Returns an announced one that another peer should try as well: one that does not
    /// get there says more of itself, without IPv6 for instance, than of the address.
    pub(super) fn on_probe(&mut self, address: &Multiaddr, reached: bool) -> Option<Multiaddr> {
        let bare = without_peer(address);
        if let Some((_, outcome)) = self.announced.iter_mut().find(|(known, _)| *known == bare) {
            if reached || *outcome == Some(false) || !self.again.insert(bare.clone()) {
                *outcome = Some(reached);
                return None;
            }
            return Some(bare);
        }
        if !is_circuit(address) && (self.probes.len() < MAX_KNOWN || self.probes.contains_key(address)) {
            self.probes.insert(bare, reached);
        }
        None
    }

    pub(super) fn on_confirmed(&mut self, address: &Multiaddr) {
        if !is_circuit(address) && self.confirmed.len() < MAX_KNOWN {
            self.confirmed.insert(without_peer(address));
        }
    }

    pub(super) fn on_expired(&mut self, address: &Multiaddr) {
        self.confirmed.remove(&without_peer(address));
    }

    /// Somebody connected to this node.
    pub(super) fn on_reached(&mut self) {
        self.was_reached = true;
    }

    /// A peer that this node reaches at `address` carries traffic for others.
    pub(super) fn on_relay(&mut self, peer: PeerId, address: Multiaddr, is_configured: bool, now: Instant) {
        if self.relays.len() < MAX_KNOWN || self.relays.contains_key(&peer) {
            let preference = if is_configured { CONFIGURED } else { MET };
            self.relays.entry(peer).or_insert(Relay { address, preference, pause: FIRST_PAUSE, due: now });
        }
    }

    /// A peer carries nothing for others any more, or is gone.
    pub(super) fn on_no_relay(&mut self, peer: &PeerId) {
        if self.relays.get(peer).is_some_and(|relay| relay.preference != NAMED)
            && !self.reservations.values().any(|of| of == peer)
        {
            self.relays.remove(peer);
        }
    }

    /// The circuit addresses to listen on now. Each relay is left alone for a while after it was asked.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let wanted = self.auto_relay && self.reachability() == Reachability::Unreachable;
        // Where the world is out of reach, a relay that only neighbours reach is of no use.
        let only_global = self.probes.keys().any(is_global);
        let held: HashSet<PeerId> = self.reservations.values().copied().collect();
        let mut missing = if wanted { WANTED_RELAYS.saturating_sub(held.len()) } else { 0 };
        let mut due: Vec<_> = self
            .relays
            .iter_mut()
            .filter(|(peer, relay)| relay.due <= now && !held.contains(peer))
            .filter(|(_, relay)| relay.preference == NAMED || !only_global || is_global(&relay.address))
            .collect();
        due.sort_by_key(|(_, relay)| relay.preference);
        let mut chosen = Vec::new();
        for (peer, relay) in due {
            if relay.preference != NAMED {
                if missing == 0 {
                    break;
                }
                missing -= 1;
            }
            relay.due = now + relay.pause;
            relay.pause = (relay.pause * 2).min(LONGEST_PAUSE);
            chosen.push((*peer, relay.address.clone().with(Protocol::P2p(*peer)).with(Protocol::P2pCircuit)));
        }
        chosen
    }

    /// A relay was asked.
    pub(super) fn on_asked(&mut self, listener: ListenerId, relay: PeerId) {
        self.reservations.insert(listener, relay);
    }

    /// A relay has a place for this node.
    pub(super) fn on_reserved(&mut self, relay: &PeerId) {
        if let Some(relay) = self.relays.get_mut(relay) {
            relay.pause = FIRST_PAUSE;
        }
    }

    /// A listener ended. Returns the relay that it was of.
    pub(super) fn on_listener_closed(&mut self, listener: ListenerId, now: Instant) -> Option<PeerId> {
        let peer = self.reservations.remove(&listener)?;
        if let Some(relay) = self.relays.get_mut(&peer) {
            relay.due = now + relay.pause;
        }
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn reach() -> Reach {
        Reach::new(false, true, &[], Instant::now())
    }

    const PUBLIC: &str = "/ip4/8.8.4.4/tcp/1";
    const PRIVATE: &str = "/ip4/10.0.0.7/tcp/1";

    #[test]
    fn a_neighbours_word_does_not_outweigh_the_worlds() {
        let mut reach = reach();
        assert_eq!(reach.reachability(), Reachability::Unknown);
        reach.on_probe(&address(PRIVATE), true);
        assert_eq!(reach.reachability(), Reachability::Direct, "there is only a private network");
        reach.on_probe(&address(PUBLIC), false);
        assert_eq!(reach.reachability(), Reachability::Unreachable);
        reach.on_confirmed(&address(PUBLIC));
        assert_eq!(reach.reachability(), Reachability::Direct, "the router forwards a port");
        reach.on_expired(&address(PUBLIC));
        assert_eq!(reach.reachability(), Reachability::Unreachable);
        assert_eq!(Reach::new(true, true, &[], Instant::now()).reachability(), Reachability::Direct);
    }

    #[test]
    fn the_word_of_the_operator_counts_and_what_others_find_is_kept_beside_it() {
        let mut reach = Reach::new(true, true, &[], Instant::now());
        reach.expect(&[address(PUBLIC)]);
        assert_eq!(reach.announced(), [(address(PUBLIC), None)]);
        assert_eq!(reach.on_probe(&address(PRIVATE), true), None, "nobody announced it");
        let named = address(PUBLIC).with(Protocol::P2p(PeerId::random()));
        assert_eq!(reach.on_probe(&named, false), Some(address(PUBLIC)));
        assert_eq!(reach.announced(), [(address(PUBLIC), None)], "one that failed may be to blame itself");
        assert_eq!(reach.on_probe(&address(PUBLIC), false), None);
        assert_eq!(reach.announced(), [(address(PUBLIC), Some(false))]);
        assert_eq!(reach.reachability(), Reachability::Direct);
        assert_eq!(reach.on_probe(&named, true), None);
        assert_eq!(reach.announced(), [(address(PUBLIC), Some(true))], "one that gets there is proof");
    }

    #[test]
    fn an_announced_address_that_the_second_one_reaches_is_reached() {
        let mut reach = Reach::new(true, true, &[], Instant::now());
        reach.expect(&[address(PUBLIC)]);
        assert_eq!(reach.on_probe(&address(PUBLIC), false), Some(address(PUBLIC)));
        assert_eq!(reach.on_probe(&address(PUBLIC), true), None);
        assert_eq!(reach.announced(), [(address(PUBLIC), Some(true))]);
    }

    #[test]
    fn relays_are_asked_only_when_needed_configured_ones_first_and_not_too_often() {
        let (mut reach, mut now) = (reach(), Instant::now());
        let (met, configured, third) = (PeerId::random(), PeerId::random(), PeerId::random());
        reach.on_relay(met, address("/ip4/10.0.0.1/tcp/1"), false, now);
        reach.on_relay(third, address("/ip4/10.0.0.3/tcp/1"), false, now);
        reach.on_relay(configured, address("/ip4/10.0.0.2/tcp/1"), true, now);
        assert!(reach.take_due(now).is_empty());
        reach.on_probe(&address(PRIVATE), false);
        let asked = reach.take_due(now);
        assert_eq!(asked.len(), WANTED_RELAYS);
        assert_eq!(asked[0].1, address(&format!("/ip4/10.0.0.2/tcp/1/p2p/{configured}/p2p-circuit")));
        let listener = ListenerId::next();
        reach.on_asked(listener, configured);
        reach.on_asked(ListenerId::next(), asked[1].0);
        assert!(reach.is_relayed() && reach.take_due(now + LONGEST_PAUSE).is_empty());
        now += FIRST_PAUSE;
        assert_eq!(reach.on_listener_closed(listener, now), Some(configured));
        let next = reach.take_due(now);
        assert!(next.len() == 1 && next[0].0 != configured, "another one takes its place");
        reach.on_asked(ListenerId::next(), next[0].0);
        assert!(reach.take_due(now + LONGEST_PAUSE).is_empty());
    }

    #[test]
    fn a_named_relay_is_used_in_any_case_and_a_local_one_not_for_the_world() {
        let (relay, local, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let named = address(&format!("{PRIVATE}/p2p/{relay}"));
        let mut reach = Reach::new(true, true, &[named], now);
        assert_eq!(reach.take_due(now).len(), 1);
        reach.on_no_relay(&relay);
        let mut reach = Reach { given: false, ..reach };
        reach.on_probe(&address(PUBLIC), false);
        reach.on_relay(local, address(PRIVATE), true, now);
        let asked = reach.take_due(now + LONGEST_PAUSE);
        assert!(asked.len() == 1 && asked[0].0 == relay, "{asked:?}");
    }
}
