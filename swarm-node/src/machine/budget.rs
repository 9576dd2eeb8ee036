//! How many bytes of requests and replies may be in memory, and who waits for some.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use petals_swarm::{Party, Seat, Shares};
use tokio::sync::oneshot;

use crate::lock::lock;

/// A request may be as large as this part of the memory, its reply included, so that a few of them find room side by side.
const LARGEST_PART: u64 = 4;
/// Who holds nothing and has waited for so long comes before those that want more than a modest part: large requests would else wait for ever
/// beside many small ones.
const OVERDUE: Duration = Duration::from_secs(1);

/// The memory of all streams together.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    shares: Shares,
    /// In the order of their coming.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// There as long as somebody waits.
    of: Weak<Access>,
    seat: Seat,
    bytes: u64,
    since: Instant,
    granted: oneshot::Sender<Reserved>,
}

/// One party's access to the memory. Making it takes longer than using it: who asks often keeps it. Clones are one access.
#[derive(Debug, Clone)]
pub(crate) struct PartyBudget(Arc<Access>);

#[derive(Debug)]
struct Access {
    budget: Budget,
    seat: Seat,
}

/// Memory that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    of: PartyBudget,
    bytes: u64,
}

/// Why memory was not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Others are using it, or it is kept for others.
    Now,
    /// Nobody ever gets so much.
    Ever,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(State { shares: Shares::new(bytes.max(LARGEST_PART)), waiting: VecDeque::new() })))
    }

    /// Bytes that a request and its reply may take together.
    pub(crate) fn request_bytes(&self) -> u64 {
        lock(&self.0).shares.capacity() / LARGEST_PART
    }

    /// The most that one party ever gets: everything but what is kept for others, when there is nobody else.
    pub(crate) fn most(&self) -> u64 {
        lock(&self.0).shares.most()
    }

    /// The access of `party`.
    pub(crate) fn of(&self, party: Party) -> PartyBudget {
        let seat = lock(&self.0).shares.seat(party);
        PartyBudget(Arc::new(Access { budget: self.clone(), seat }))
    }

    /// Bytes that nobody holds.
    #[cfg(test)]
    pub(crate) fn free(&self) -> u64 {
        lock(&self.0).shares.free()
    }
}

impl State {
    /// Whether a party may take so much while those before it wait.
    fn may_take(&self, seat: Seat, bytes: u64, before: Option<usize>, now: Instant) -> bool {
        if !self.shares.may_take(seat, bytes) {
            return false;
        }
        let overdue = |waiting: &Waiting| {
            now.saturating_duration_since(waiting.since) >= OVERDUE
                && !waiting.granted.is_closed()
                && self.shares.held_by(waiting.seat) == 0
        };
        let before = self.waiting.iter().take(before.unwrap_or(usize::MAX));
        self.waiting.is_empty() || self.shares.is_modest(seat, bytes) || !before.into_iter().any(overdue)
    }

    /// Gives those their memory that wait for it, as far as there is some.
    fn grant(&mut self) -> Vec<(oneshot::Sender<Reserved>, Reserved)> {
        let mut granted = Vec::new();
        if self.waiting.is_empty() {
            return granted;
        }
        let (now, mut at) = (Instant::now(), 0);
        while let Some(waiting) = self.waiting.get(at) {
            let (seat, bytes) = (waiting.seat, waiting.bytes);
            let closed = waiting.granted.is_closed();
            if !closed && !self.may_take(seat, bytes, Some(at), now) {
                at += 1;
                continue;
            }
            let Some(waiting) = self.waiting.remove(at).filter(|_| !closed) else { continue };
            // Given up in this moment if it is not there; else what may be its last holder goes with the rest, to be dropped without the lock.
            let Some(access) = waiting.of.upgrade() else { continue };
            self.shares.take(seat, bytes);
            granted.push((waiting.granted, Reserved { of: PartyBudget(access), bytes }));
        }
        granted
    }
}

impl PartyBudget {
    /// Waits for room; no more than what a party ever gets is demanded. `None` never comes as long as this is held.
    pub(crate) async fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let answer = {
            let Access { budget, seat } = &*self.0;
            let mut state = lock(&budget.0);
            let bytes = bytes.min(state.shares.most());
            let now = Instant::now();
            if state.may_take(*seat, bytes, None, now) {
                state.shares.take(*seat, bytes);
                return Some(Reserved { of: self.clone(), bytes });
            }
            let (granted, answer) = oneshot::channel();
            let of = Arc::downgrade(&self.0);
            state.waiting.push_back(Waiting { of, seat: *seat, bytes, since: now, granted });
            answer
        };
        answer.await.ok()
    }

    /// Reserves `bytes` beside the `held` ones without waiting.
    pub(crate) fn try_reserve(&self, bytes: u64, held: u64) -> Result<Reserved, NoRoom> {
        let mut reserved = Reserved { of: self.clone(), bytes: 0 };
        reserved.grow(bytes, held)?;
        Ok(reserved)
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        lock(&self.budget.0).shares.leave(self.seat);
    }
}

impl Reserved {
    /// Bytes that are taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` beside these and the `held` ones without waiting; on failure nothing has changed.
    pub(crate) fn grow(&mut self, more: u64, held: u64) -> Result<(), NoRoom> {
        // Whoever holds something may hold it.
        if more == 0 {
            return Ok(());
        }
        let Access { budget, seat } = &*self.of.0;
        let mut state = lock(&budget.0);
        if self.bytes.saturating_add(more).saturating_add(held) > state.shares.most() {
            return Err(NoRoom::Ever);
        }
        // Whoever waits wants to begin something; this is to complete what has begun.
        if !state.shares.may_take(*seat, more) {
            return Err(NoRoom::Now);
        }
        state.shares.take(*seat, more);
        self.bytes += more;
        Ok(())
    }

    /// Gives back what is beyond so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        if excess == 0 {
            return;
        }
        self.bytes -= excess;
        let Access { budget, seat } = &*self.of.0;
        let granted = {
            let mut state = lock(&budget.0);
            state.shares.give(*seat, excess);
            state.grant()
        };
        // Not under the lock: what nobody waits for any more is given back at once.
        for (waiting, reserved) in granted {
            let _ = waiting.send(reserved);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests;
