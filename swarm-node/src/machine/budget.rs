//! How many bytes of requests and replies may be in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use petals_swarm::PeerId;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Semaphores count in units of this many bytes: their counters are 32 bits wide.
const UNIT: u64 = 1024;
/// A peer may hold this part of the memory, so that one alone cannot keep all others waiting.
const PEER_SHARE: u32 = 4;

/// The memory of all streams together, and each peer's share of it.
#[derive(Debug)]
pub(crate) struct Budget {
    all: Arc<Semaphore>,
    peer_units: u32,
    /// Shares of the peers that have a stream or hold memory.
    peers: Mutex<HashMap<PeerId, Weak<Semaphore>>>,
}

/// One peer's access to the memory, shared by its streams.
#[derive(Debug, Clone)]
pub(crate) struct PeerBudget {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    units: u32,
}

/// Memory that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Why a reply's memory was not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Others are using it.
    Now,
    /// A peer never gets so much.
    Ever,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(PEER_SHARE);
        let all = Arc::new(Semaphore::new(units as usize));
        Self { all, peer_units: units / PEER_SHARE, peers: Mutex::default() }
    }

    /// Bytes that one peer may hold.
    pub(crate) fn peer_bytes(&self) -> u64 {
        u64::from(self.peer_units) * UNIT
    }

    /// The share of `peer`, the same for all of its streams.
    pub(crate) fn of(&self, peer: PeerId) -> PeerBudget {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = peers.get(&peer).and_then(Weak::upgrade).unwrap_or_else(|| {
            peers.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Semaphore::new(self.peer_units as usize));
            peers.insert(peer, Arc::downgrade(&own));
            own
        });
        PeerBudget { all: self.all.clone(), own, units: self.peer_units }
    }
}

impl PeerBudget {
    /// Waits for room; no more than the peer's whole share is demanded. The peer's share comes first: who waits for the
    /// others' memory must not keep a part of it.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Reserved, AcquireError> {
        let units = units(bytes).min(self.units);
        let own = self.own.clone().acquire_many_owned(units).await?;
        let all = self.all.clone().acquire_many_owned(units).await?;
        Ok(Reserved { _own: own, _all: all })
    }

    /// Reserves `bytes` beside the `held` ones without waiting.
    pub(crate) fn try_reserve(&self, bytes: u64, held: u64) -> Result<Reserved, NoRoom> {
        let units = units(bytes);
        if units.saturating_add(self::units(held)) > self.units {
            return Err(NoRoom::Ever);
        }
        let own = self.own.clone().try_acquire_many_owned(units).map_err(|_| NoRoom::Now)?;
        let all = self.all.clone().try_acquire_many_owned(units).map_err(|_| NoRoom::Now)?;
        Ok(Reserved { _own: own, _all: all })
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_peer_gets_its_share_over_all_streams_and_leaves_the_rest_to_others() {
        let budget = Budget::new(16 * UNIT);
        let (one, other) = (PeerId::random(), PeerId::random());
        let first = budget.of(one).reserve(3 * UNIT).now_or_never().unwrap().unwrap();
        let stream = budget.of(one);
        assert!(stream.reserve(2 * UNIT).now_or_never().is_none(), "the share is used up");
        assert_eq!(stream.try_reserve(2 * UNIT, UNIT).unwrap_err(), NoRoom::Now);
        assert_eq!(stream.try_reserve(2 * UNIT, 3 * UNIT).unwrap_err(), NoRoom::Ever);
        assert!(budget.of(other).reserve(4 * UNIT).now_or_never().is_some());
        drop(first);
        assert!(stream.reserve(4 * UNIT).now_or_never().is_some());
    }

    #[test]
    fn peers_together_stay_within_the_memory() {
        let budget = Budget::new(4 * UNIT);
        let held: Vec<_> =
            (0..4).map(|_| budget.of(PeerId::random()).reserve(UNIT).now_or_never().unwrap().unwrap()).collect();
        let late = budget.of(PeerId::random());
        assert!(late.reserve(1).now_or_never().is_none());
        assert_eq!(late.try_reserve(1, 0).unwrap_err(), NoRoom::Now);
        drop(held);
        assert!(late.try_reserve(1, 0).is_ok());
    }

    #[test]
    fn peers_that_left_are_forgotten() {
        let budget = Budget::new(1 << 20);
        for _ in 0..100 {
            budget.of(PeerId::random());
        }
        assert!(budget.peers.lock().unwrap().len() <= 1);
    }
}
