//! How many streams others may have open to this node, and what has passed through all of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use tokio::time::Instant;

use crate::rates::Rates;
use crate::shares::{Origin, Party, Shares};

/// Streams that one peer may open at once, and per second afterwards. A client opens one to each server of a route and keeps it;
/// each costs a task and a greeting.
const OPEN_BURST: u32 = 256;
const OPENS_PER_SECOND: u32 = 16;
/// An address may open as fast as so many peers.
const PEERS_OF_AN_ADDRESS: u32 = 16;

/// Totals since the node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes read from block streams.
    pub bytes_in: u64,
    /// Bytes written to block streams.
    pub bytes_out: u64,
    /// Streams this node opened.
    pub streams_opened: u64,
    /// Streams accepted from others.
    pub streams_accepted: u64,
    /// Streams of others refused, because they had too many or they came too fast.
    pub streams_refused: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// Counts the inbound streams of each peer and address. Shared by all connections.
#[derive(Debug)]
pub(crate) struct Admission {
    /// No peer needs more, however much there is.
    per_peer: u64,
    open: Mutex<Open>,
    pub(crate) counters: Counters,
}

#[derive(Debug)]
struct Open {
    streams: Shares,
    of_peers: Rates<PeerId>,
    of_addresses: Rates<Origin>,
}

/// One inbound stream's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    party: Party,
}

impl Admission {
    pub(crate) fn new(per_peer: usize, total: usize) -> Arc<Self> {
        let open = Open {
            streams: Shares::new(total as u64),
            of_peers: Rates::new(OPEN_BURST, OPENS_PER_SECOND),
            of_addresses: Rates::new(PEERS_OF_AN_ADDRESS * OPEN_BURST, PEERS_OF_AN_ADDRESS * OPENS_PER_SECOND),
        };
        Arc::new(Self { per_peer: per_peer as u64, open: Mutex::new(open), counters: Counters::default() })
    }

    /// A place for one more stream of `party`, if there is one.
    pub(crate) fn admit(self: &Arc<Self>, party: Party) -> Option<Permit> {
        let (now, mut open) = (Instant::now(), self.lock());
        if !open.of_peers.take(party.peer, now) || !open.of_addresses.take(party.origin, now) {
            return None;
        }
        if open.streams.held_by(party) >= self.per_peer || !open.streams.may_take(party, 1) {
            return None;
        }
        open.streams.take(party, 1);
        Some(Permit { admission: Arc::clone(self), party })
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            bytes_in: read(&self.counters.bytes_in),
            bytes_out: read(&self.counters.bytes_out),
            streams_opened: read(&self.counters.opened),
            streams_accepted: read(&self.counters.accepted),
            streams_refused: read(&self.counters.refused),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // The counts are consistent between any two statements, so a panic elsewhere does not spoil them.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.lock().streams.give(self.party, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u8) -> Party {
        Party { peer: PeerId::random(), origin: Origin::Ip4([10, 0, 0, number].into()) }
    }

    #[test]
    fn streams_are_limited_per_peer_and_in_all() {
        let admission = Admission::new(2, 4);
        let (a, b) = (at(1), at(2));
        let held = [admission.admit(a).unwrap(), admission.admit(a).unwrap()];
        assert!(admission.admit(a).is_none(), "a has two");
        let beside = || Party { peer: PeerId::random(), ..a };
        let _beside = admission.admit(beside()).unwrap();
        assert!(admission.admit(beside()).is_none(), "its address has enough");
        let _b = admission.admit(b).unwrap();
        assert!(admission.admit(at(3)).is_none(), "all four are taken");
        drop(held);
        assert!(admission.admit(a).is_some());
        assert_eq!(admission.lock().streams.held_by(a), 0, "nothing is kept of a peer without streams");
    }

    #[test]
    fn many_peers_of_one_address_leave_streams_for_others() {
        let admission = Admission::new(16, 1024);
        let attacker = at(1);
        let peers: Vec<Party> = (0..64).map(|_| Party { peer: PeerId::random(), ..attacker }).collect();
        let held: Vec<Permit> = peers.iter().flat_map(|peer| (0..16).filter_map(|_| admission.admit(*peer))).collect();
        assert!(held.len() >= 700, "an address that is alone has most of them: {}", held.len());
        let honest: Vec<Permit> =
            (2..18).flat_map(|n| (0..4).map(move |_| n)).filter_map(|n| admission.admit(at(n))).collect();
        assert_eq!(honest.len(), 64, "beside {}", held.len());
    }

    #[test]
    fn a_peer_that_opens_stream_after_stream_is_slowed_down() {
        let admission = Admission::new(16, 1024);
        let (greedy, other) = (at(1), at(2));
        let admitted = (0..10_000).filter(|_| admission.admit(greedy).is_some()).count();
        // What is refilled meanwhile depends on the machine.
        assert!(admitted >= OPEN_BURST as usize && admitted < 5_000, "{admitted}");
        assert!(admission.admit(other).is_some());
    }
}
