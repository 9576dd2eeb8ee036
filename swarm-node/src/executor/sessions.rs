//! Inference sessions: whose keys and values are kept, and how much memory they may take.
//!
//! Memory is taken when a session opens, for all that it may grow to. What of it is filled stays with the session as long as its address and its peer
//! have no more than their parts; what is reserved and unfilled gives way first, when somebody comes who has less than its part. A page that
//! sequences share is counted for each of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_model::{KvCache, PAGE_TOKENS, SpanTables};
use petals_protocol::{Refusal, SessionId, SessionOpen, Span, WeightChange};
use petals_swarm::{Party, Shares};

use super::memory::SessionMemory;
use crate::lock::lock;

/// A session is only ever used on the stream that opened it.
pub(crate) type SessionKey = (u64, SessionId);

/// One peer's sessions may take this part of the memory.
const PEER_PART: u64 = 2;
/// A session that was idle for this long makes room for a new one if there is none.
const IDLE: Duration = Duration::from_secs(30);
/// When to ask again if there is no memory for one more session.
const RETRY_WITHOUT_MEMORY_MS: u32 = 500;

/// Sequences that grow together.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) span: Span,
    pub(crate) prefix_rows: usize,
    pub(crate) sequences: Vec<KvCache>,
    pub(crate) limits: SessionOpen,
    /// How the weights are adapted for all of them, if they are.
    pub(crate) tables: Option<Arc<SpanTables>>,
    /// What those tables are.
    pub(crate) weights: WeightChange,
    used: Instant,
    /// What it takes by its length, and for which length it has taken that.
    memory: SessionMemory,
    reserved: u64,
    taken: Taken,
}

impl Session {
    /// Bytes for sequences of so many positions.
    fn bytes(&self, positions: u64) -> u64 {
        self.memory.bytes(positions, self.limits.max_sequences)
    }

    /// Bytes that it has taken and does not need yet.
    fn unfilled(&self) -> u64 {
        self.taken.bytes.saturating_sub(self.bytes(self.filled()))
    }

    /// Positions of its longest sequence.
    fn filled(&self) -> u64 {
        self.sequences.iter().map(|cache| cache.len() as u64).max().unwrap_or(0)
    }

    /// Gives back what is not needed yet.
    fn give_way(&mut self) {
        self.reserved = self.filled();
        let bytes = self.bytes(self.reserved);
        self.taken.shrink_to(bytes);
    }
}

/// Memory that a session has taken, until this is dropped.
#[derive(Debug)]
struct Taken {
    shares: Arc<Mutex<Shares>>,
    party: Party,
    bytes: u64,
}

impl Taken {
    fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        lock(&self.shares).give(self.party, excess);
        self.bytes -= excess;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// All sessions of a node, under a budget of bytes and a time limit.
#[derive(Debug)]
pub(crate) struct SessionStore {
    sessions: HashMap<SessionKey, Session>,
    /// Those that were handed out, their spans, and whether they ended meanwhile.
    computing: HashMap<SessionKey, (Span, bool)>,
    /// Streams whose sessions are kept.
    open: HashSet<u64>,
    /// Those that compute at the moment are included.
    shares: Arc<Mutex<Shares>>,
    budget: u64,
    lifetime: Duration,
}

impl SessionStore {
    /// Sessions that nobody used for `lifetime` are dropped.
    pub(crate) fn new(budget: u64, lifetime: Duration) -> Self {
        let (sessions, computing, open) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { sessions, computing, open, shares: Arc::new(Mutex::new(Shares::new(budget))), budget, lifetime }
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.shares).held()
    }

    /// Bytes that may be taken.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Sessions that are open.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len() + self.computing.len()
    }

    /// Tokens for which there is room, at `page_bytes` for [`PAGE_TOKENS`] of them.
    pub(crate) fn tokens_left(&self, page_bytes: u64) -> u64 {
        (self.budget - self.bytes()) / page_bytes.max(1) * PAGE_TOKENS as u64
    }

    /// Lets a stream have sessions.
    pub(crate) fn open_stream(&mut self, stream: u64) {
        self.open.insert(stream);
    }

    /// Takes the memory of a new session, which is to be [`Self::put`] or dropped and [`Self::abandon`]ed.
    pub(crate) fn admit(
        &mut self,
        key: SessionKey,
        party: Party,
        span: Span,
        limits: SessionOpen,
        memory: SessionMemory,
    ) -> Result<Session, Refusal> {
        self.end(key);
        let positions = u64::from(limits.max_positions);
        let bytes = memory.bytes(positions, limits.max_sequences);
        let share = self.budget / PEER_PART;
        if bytes > share {
            return Err(Refusal::TooLarge { what: "the memory of the session".into(), got: bytes, limit: share });
        }
        self.take_memory(party, bytes, Instant::now())?;
        self.computing.insert(key, (span, false));
        let taken = Taken { shares: self.shares.clone(), party, bytes };
        let (tables, weights) = (None, WeightChange::None);
        let (sequences, used, reserved) = (Vec::new(), Instant::now(), positions);
        Ok(Session { span, prefix_rows: 0, sequences, limits, tables, weights, used, memory, reserved, taken })
    }

    /// Takes the memory that a session gave back and needs now, for sequences of so many positions.
    pub(crate) fn grow(&mut self, session: &mut Session, positions: u64) -> Result<(), Refusal> {
        if positions <= session.reserved {
            return Ok(());
        }
        let more = session.bytes(positions).saturating_sub(session.taken.bytes);
        self.take_memory(session.taken.party, more, Instant::now())?;
        session.taken.bytes += more;
        session.reserved = positions;
        Ok(())
    }

    fn take_memory(&mut self, party: Party, bytes: u64, now: Instant) -> Result<(), Refusal> {
        // Only for a peer that may have it: others' sessions do not go for nothing.
        let allowed = lock(&self.shares).held_by(party).saturating_add(bytes) <= self.budget / PEER_PART;
        if allowed {
            self.make_room(party, bytes, now);
        }
        let mut shares = lock(&self.shares);
        if !allowed || shares.free() < bytes {
            return Err(Refusal::Busy { retry_after_ms: RETRY_WITHOUT_MEMORY_MS });
        }
        shares.take(party, bytes);
        Ok(())
    }

    fn has_room(&self, bytes: u64) -> bool {
        lock(&self.shares).free() >= bytes
    }

    /// Ends sessions that were idle for a while, the one that was so for longest first, until there are `bytes`: who reserves and
    /// does nothing keeps nobody out. Their clients can open them again. If that is not enough for a party that has no more than its part, those that have
    /// more give way: first what they have reserved and not filled, then the sessions that were not used for longest.
    fn make_room(&mut self, party: Party, bytes: u64, now: Instant) {
        while !self.has_room(bytes) {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let Some((&key, session)) = oldest else { return };
            if now.saturating_duration_since(session.used) < IDLE {
                break;
            }
            self.sessions.remove(&key);
        }
        if self.has_room(bytes) || !lock(&self.shares).is_portion(party, bytes) {
            return;
        }
        let ahead = |store: &Self, of: Party| lock(&store.shares).ahead(of, party);
        let candidates = self.sessions.iter().filter_map(|(key, session)| {
            let ahead = ahead(self, session.taken.party)?;
            Some((*key, session.taken.party, ahead, session.unfilled(), session.used))
        });
        let mut candidates: Vec<_> = candidates.collect();
        candidates.sort_by_key(|(_, _, ahead, unfilled, _)| std::cmp::Reverse((*ahead, *unfilled)));
        for (key, _, _, unfilled, _) in &candidates {
            if self.has_room(bytes) {
                return;
            }
            if let Some(session) = self.sessions.get_mut(key).filter(|_| *unfilled > 0) {
                session.give_way();
            }
        }
        candidates.sort_by_key(|(.., used)| *used);
        for (key, of, ..) in candidates {
            if self.has_room(bytes) {
                return;
            }
            if ahead(self, of).is_some() {
                self.sessions.remove(&key);
            }
        }
    }

    /// Takes a session out to work on it.
    pub(crate) fn take(&mut self, key: SessionKey) -> Result<Session, Refusal> {
        let session = self.sessions.remove(&key).ok_or(Refusal::SessionGone)?;
        self.computing.insert(key, (session.span, false));
        Ok(session)
    }

    /// Puts a session back, unless it or its stream has ended meanwhile.
    pub(crate) fn put(&mut self, key: SessionKey, mut session: Session, now: Instant) {
        let ended = self.computing.remove(&key).is_some_and(|(_, ended)| ended);
        if self.open.contains(&key.0) && !ended {
            session.used = now;
            self.sessions.insert(key, session);
        }
    }

    /// Forgets a session that was handed out and will not come back.
    pub(crate) fn abandon(&mut self, key: SessionKey) {
        self.computing.remove(&key);
    }

    /// Ends a session.
    pub(crate) fn end(&mut self, key: SessionKey) {
        self.sessions.remove(&key);
        self.computing.entry(key).and_modify(|(_, ended)| *ended = true);
    }

    /// Ends sessions over other spans than those that `keep` says.
    pub(crate) fn retain(&mut self, keep: impl Fn(Span) -> bool) {
        self.sessions.retain(|_, session| keep(session.span));
        self.computing.values_mut().for_each(|(span, ended)| *ended |= !keep(*span));
    }

    /// Ends all sessions of a stream.
    pub(crate) fn forget_stream(&mut self, stream: u64) {
        self.open.remove(&stream);
        self.sessions.retain(|(of, _), _| *of != stream);
        self.computing.retain(|(of, _), _| *of != stream);
    }

    /// Ends sessions that nobody used for long.
    pub(crate) fn expire(&mut self, now: Instant) {
        let lifetime = self.lifetime;
        self.sessions.retain(|_, session| now.saturating_duration_since(session.used) <= lifetime);
    }
}

#[cfg(test)]
mod tests;
