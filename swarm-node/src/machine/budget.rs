//! How many bytes of requests and replies may be in memory, and who waits for some.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_swarm::{Party, Shares};
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
    party: Party,
    bytes: u64,
    since: Instant,
    granted: oneshot::Sender<Reserved>,
}

/// One party's access to the memory, the same for all of its streams.
#[derive(Debug, Clone)]
pub(crate) struct PartyBudget {
    budget: Budget,
    party: Party,
}

/// Memory that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    budget: Budget,
    party: Party,
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
        PartyBudget { budget: self.clone(), party }
    }

    /// Bytes that nobody holds.
    #[cfg(test)]
    pub(crate) fn free(&self) -> u64 {
        lock(&self.0).shares.free()
    }

    /// Gives those their memory that wait for it, as far as there is some.
    fn serve(&self) {
        let granted = {
            let mut state = lock(&self.0);
            if state.waiting.is_empty() {
                return;
            }
            state.grant(self)
        };
        // Not under the lock: what nobody waits for any more is given back at once.
        for (waiting, reserved) in granted {
            let _ = waiting.send(reserved);
        }
    }
}

impl State {
    /// Whether a party may take so much while those before it wait.
    fn may_take(&self, party: Party, bytes: u64, before: Option<usize>, now: Instant) -> bool {
        if !self.shares.may_take(party, bytes) {
            return false;
        }
        let overdue = |waiting: &Waiting| {
            now.saturating_duration_since(waiting.since) >= OVERDUE
                && self.shares.held_by(waiting.party) == 0
                && !waiting.granted.is_closed()
        };
        let before = self.waiting.iter().take(before.unwrap_or(usize::MAX));
        self.waiting.is_empty() || self.shares.is_modest(party, bytes) || !before.into_iter().any(overdue)
    }

    fn grant(&mut self, budget: &Budget) -> Vec<(oneshot::Sender<Reserved>, Reserved)> {
        let (now, mut granted, mut at) = (Instant::now(), Vec::new(), 0);
        while let Some(waiting) = self.waiting.get(at) {
            let (party, bytes) = (waiting.party, waiting.bytes);
            let closed = waiting.granted.is_closed();
            if !closed && !self.may_take(party, bytes, Some(at), now) {
                at += 1;
                continue;
            }
            let Some(waiting) = self.waiting.remove(at) else { break };
            if !closed {
                self.shares.take(party, bytes);
                granted.push((waiting.granted, Reserved { budget: budget.clone(), party, bytes }));
            }
        }
        granted
    }
}

impl PartyBudget {
    /// Waits for room; no more than what a party ever gets is demanded. `None` never comes as long as this is held.
    pub(crate) async fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let answer = {
            let mut state = lock(&self.budget.0);
            let (now, bytes) = (Instant::now(), bytes.min(state.shares.most()));
            if state.may_take(self.party, bytes, None, now) {
                state.shares.take(self.party, bytes);
                return Some(Reserved { budget: self.budget.clone(), party: self.party, bytes });
            }
            let (granted, answer) = oneshot::channel();
            state.waiting.push_back(Waiting { party: self.party, bytes, since: now, granted });
            answer
        };
        answer.await.ok()
    }

    /// Reserves `bytes` beside the `held` ones without waiting.
    pub(crate) fn try_reserve(&self, bytes: u64, held: u64) -> Result<Reserved, NoRoom> {
        let mut reserved = Reserved { budget: self.budget.clone(), party: self.party, bytes: 0 };
        reserved.grow(bytes, held)?;
        Ok(reserved)
    }
}

impl Reserved {
    /// Bytes that are taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` beside these and the `held` ones without waiting; on failure nothing has changed.
    pub(crate) fn grow(&mut self, more: u64, held: u64) -> Result<(), NoRoom> {
        let mut state = lock(&self.budget.0);
        if self.bytes.saturating_add(more).saturating_add(held) > state.shares.most() {
            return Err(NoRoom::Ever);
        }
        // Whoever waits wants to begin something; this is to complete what has begun.
        if !state.shares.may_take(self.party, more) {
            return Err(NoRoom::Now);
        }
        state.shares.take(self.party, more);
        self.bytes += more;
        Ok(())
    }

    /// Gives back what is beyond so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        if excess > 0 {
            lock(&self.budget.0).shares.give(self.party, excess);
            self.bytes -= excess;
            self.budget.serve();
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
