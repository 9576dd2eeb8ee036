//! Whose traffic this node carries: places at the relay and circuits through it, shared among those who ask, by peer and by address.
//!
//! libp2p counts them by peer. It asks before it gives a place, and tells of what it gave and of what ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::{Multiaddr, PeerId, relay};
use tokio::time::Instant;

use crate::config::RelayLimits;
use crate::shares::{Origin, Party, Shares};

/// A request counts for so long unless something is heard of it.
const PENDING: Duration = Duration::from_secs(10);

/// Places and circuits. Clones are of the same.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    reservations: Arc<Mutex<Seats>>,
    circuits: Arc<Mutex<Seats>>,
}

/// What there is of one of them.
#[derive(Debug)]
struct Seats {
    shares: Shares,
    /// Whether one is enough for a peer, and asked for again and again.
    one_each: bool,
    /// What was asked for, the oldest first.
    pending: VecDeque<(Instant, Party)>,
    given: HashMap<PeerId, Vec<Party>>,
}

impl Seats {
    fn new(count: usize, one_each: bool) -> Arc<Mutex<Self>> {
        let (shares, pending, given) = (Shares::new(count as u64), VecDeque::new(), HashMap::new());
        Arc::new(Mutex::new(Self { shares, one_each, pending, given }))
    }

    /// Whether a peer that asks from `address` may have one more.
    fn ask(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) -> bool {
        while self.pending.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= PENDING) {
            if let Some((_, party)) = self.pending.pop_front() {
                self.shares.give(party, 1);
            }
        }
        if self.one_each && self.given.contains_key(&peer) {
            return true;
        }
        let party = Party { peer, origin: Origin::of_address(address) };
        if !self.shares.may_take(party, 1) {
            return false;
        }
        self.shares.take(party, 1);
        self.pending.push_back((now, party));
        true
    }

    /// The peer has one more.
    fn given(&mut self, peer: PeerId) {
        let asked = self.pending.iter().position(|(_, party)| party.peer == peer);
        if let Some((_, party)) = asked.and_then(|at| self.pending.remove(at)) {
            self.given.entry(peer).or_default().push(party);
        }
    }

    /// The peer has one less.
    fn ended(&mut self, peer: PeerId) {
        let Some(given) = self.given.get_mut(&peer) else { return };
        if let Some(party) = given.pop() {
            self.shares.give(party, 1);
        }
        if given.is_empty() {
            self.given.remove(&peer);
        }
    }
}

impl Carried {
    pub(crate) fn new(limits: &RelayLimits) -> Self {
        Self { reservations: Seats::new(limits.reservations, true), circuits: Seats::new(limits.circuits, false) }
    }

    /// Asked by the relay for each place at it.
    pub(crate) fn ask_reservation(&self) -> Box<dyn relay::RateLimiter> {
        ask(self.reservations.clone())
    }

    /// Asked by the relay for each circuit.
    pub(crate) fn ask_circuit(&self) -> Box<dyn relay::RateLimiter> {
        ask(self.circuits.clone())
    }

    /// Notes what the relay did.
    pub(crate) fn on_event(&self, event: &relay::Event) {
        match event {
            relay::Event::ReservationReqAccepted { src_peer_id, renewed: false } => {
                lock(&self.reservations).given(*src_peer_id);
            }
            relay::Event::ReservationClosed { src_peer_id } | relay::Event::ReservationTimedOut { src_peer_id } => {
                lock(&self.reservations).ended(*src_peer_id);
            }
            relay::Event::CircuitReqAccepted { src_peer_id, .. } => lock(&self.circuits).given(*src_peer_id),
            relay::Event::CircuitClosed { src_peer_id, .. } => lock(&self.circuits).ended(*src_peer_id),
            _ => {}
        }
    }
}

fn ask(seats: Arc<Mutex<Seats>>) -> Box<dyn relay::RateLimiter> {
    Box::new(move |peer: PeerId, address: &Multiaddr, _: std::time::Instant| {
        lock(&seats).ask(peer, address, Instant::now())
    })
}

/// Every change is whole, so a panic elsewhere does not spoil it.
fn lock(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> Multiaddr {
        format!("/ip4/10.0.0.{number}/tcp/5").parse().unwrap()
    }

    #[test]
    fn ids_of_one_address_do_not_take_every_place() {
        let carried = Carried::new(&RelayLimits { reservations: 64, circuits: 64, ..RelayLimits::default() });
        let now = Instant::now();
        for seats in [&carried.reservations, &carried.circuits] {
            let mut seats = lock(seats);
            let ids: Vec<PeerId> = (0..100).map(|_| PeerId::random()).collect();
            let got: Vec<PeerId> = ids.into_iter().filter(|peer| seats.ask(*peer, &address(1), now)).collect();
            assert_eq!(got.len(), 48, "three quarters for an address that is alone");
            got.iter().for_each(|peer| seats.given(*peer));
            assert!(seats.ask(PeerId::random(), &address(2), now));
            // What ends is free for others; what was asked for and never came is so after a while.
            let later = now + 2 * PENDING;
            assert!(!seats.ask(PeerId::random(), &address(1), later));
            got.iter().for_each(|peer| seats.ended(*peer));
            assert!(seats.ask(PeerId::random(), &address(1), later));
            assert_eq!((seats.shares.held(), seats.given.len()), (1, 0));
        }
    }

    #[test]
    fn a_place_is_renewed_without_being_counted_twice() {
        let carried = Carried::new(&RelayLimits { reservations: 4, ..RelayLimits::default() });
        let (mut seats, peer, now) = (lock(&carried.reservations), PeerId::random(), Instant::now());
        assert!(seats.ask(peer, &address(1), now));
        seats.given(peer);
        assert!((0..100).all(|_| seats.ask(peer, &address(1), now)));
        assert_eq!(seats.shares.held(), 1);
    }
}
