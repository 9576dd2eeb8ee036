//! How many streams others may have open to this node, and what has passed through all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use tokio::time::Instant;

use crate::rates::Rates;

/// Streams that one peer may open at once, and per second afterwards. A client opens one to each server of a route and keeps it;
/// each costs a task and a greeting.
const OPEN_BURST: u32 = 256;
const OPENS_PER_SECOND: u32 = 16;

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

/// Counts the inbound streams of each peer. Shared by all connections.
#[derive(Debug)]
pub(crate) struct Admission {
    per_peer: usize,
    total: usize,
    open: Mutex<Open>,
    rates: Mutex<Rates<PeerId>>,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    peers: HashMap<PeerId, usize>,
}

/// One inbound stream's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    peer: PeerId,
}

impl Admission {
    pub(crate) fn new(per_peer: usize, total: usize) -> Arc<Self> {
        Arc::new(Self {
            per_peer,
            total,
            open: Mutex::default(),
            rates: Mutex::new(Rates::new(OPEN_BURST, OPENS_PER_SECOND)),
            counters: Counters::default(),
        })
    }

    /// A place for one more stream of `peer`, if there is one.
    pub(crate) fn admit(self: &Arc<Self>, peer: PeerId) -> Option<Permit> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if !rates.take(peer, Instant::now()) {
            return None;
        }
        drop(rates);
        let mut open = self.lock();
        let of_peer = open.peers.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.per_peer || open.total >= self.total {
            return None;
        }
        open.peers.insert(peer, of_peer + 1);
        open.total += 1;
        Some(Permit { admission: Arc::clone(self), peer })
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
        let mut open = self.admission.lock();
        open.total = open.total.saturating_sub(1);
        if let Some(count) = open.peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_limited_per_peer_and_in_all() {
        let admission = Admission::new(2, 3);
        let (a, b) = (PeerId::random(), PeerId::random());
        let held = [admission.admit(a).unwrap(), admission.admit(a).unwrap()];
        assert!(admission.admit(a).is_none(), "a has two");
        let _b = admission.admit(b).unwrap();
        assert!(admission.admit(b).is_none(), "all three are taken");
        drop(held);
        assert!(admission.admit(a).is_some());
        assert!(!admission.lock().peers.contains_key(&a), "nothing is kept of a peer without streams");
    }

    #[test]
    fn a_peer_that_opens_stream_after_stream_is_slowed_down() {
        let admission = Admission::new(16, 1024);
        let (greedy, other) = (PeerId::random(), PeerId::random());
        let admitted = (0..10_000).filter(|_| admission.admit(greedy).is_some()).count();
        // What is refilled meanwhile depends on the machine.
        assert!(admitted >= OPEN_BURST as usize && admitted < 5_000, "{admitted}");
        assert!(admission.admit(other).is_some());
    }
}
