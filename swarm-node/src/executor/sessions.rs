//! Inference sessions: whose keys and values are kept, and how much memory they may take.
//!
//! Memory is taken when a session opens, for all that it may grow to, so that a session that was let in is never stopped by
//! others. A page that sequences share is counted for each of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_model::{KvCache, PAGE_TOKENS, SpanTables};
use petals_protocol::{Refusal, SessionId, SessionOpen, Span, WeightChange};
use petals_swarm::PeerId;

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
    _memory: Taken,
}

/// What a session's memory follows from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionMemory {
    /// Most bytes of a sequence.
    pub(crate) of_sequence: u64,
    /// Bytes of its tables.
    pub(crate) fixed: u64,
}

/// Who has taken how much.
#[derive(Debug, Default)]
struct Accounts {
    bytes: u64,
    of_peer: HashMap<PeerId, u64>,
}

/// Memory that a session has taken, until this is dropped.
#[derive(Debug)]
struct Taken {
    accounts: Arc<Mutex<Accounts>>,
    peer: PeerId,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut accounts = lock(&self.accounts);
        accounts.bytes -= self.bytes;
        if let Some(of_peer) = accounts.of_peer.get_mut(&self.peer) {
            *of_peer -= self.bytes;
            if *of_peer == 0 {
                accounts.of_peer.remove(&self.peer);
            }
        }
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
    accounts: Arc<Mutex<Accounts>>,
    budget: u64,
    lifetime: Duration,
}

impl SessionStore {
    /// Sessions that nobody used for `lifetime` are dropped.
    pub(crate) fn new(budget: u64, lifetime: Duration) -> Self {
        let (sessions, computing, open) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { sessions, computing, open, accounts: Arc::default(), budget, lifetime }
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.accounts).bytes
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

    /// Takes the memory of a new session, which is to be [`Self::put`] or dropped.
    pub(crate) fn admit(
        &mut self,
        key: SessionKey,
        peer: PeerId,
        span: Span,
        limits: SessionOpen,
        memory: SessionMemory,
    ) -> Result<Session, Refusal> {
        self.end(key);
        let bytes = memory.of_sequence.saturating_mul(u64::from(limits.max_sequences));
        let bytes = bytes.saturating_add(memory.fixed);
        let share = self.budget / PEER_PART;
        if bytes > share {
            return Err(Refusal::TooLarge { what: "the memory of the session".into(), got: bytes, limit: share });
        }
        let of_peer = lock(&self.accounts).of_peer.get(&peer).copied().unwrap_or_default();
        // Only for a peer that may have it: others' sessions do not go for nothing.
        let allowed = of_peer + bytes <= share;
        if allowed {
            self.make_room(bytes, Instant::now());
        }
        let mut accounts = lock(&self.accounts);
        let of_peer = accounts.of_peer.get(&peer).copied().unwrap_or_default();
        if !allowed || accounts.bytes + bytes > self.budget {
            return Err(Refusal::Busy { retry_after_ms: RETRY_WITHOUT_MEMORY_MS });
        }
        accounts.bytes += bytes;
        accounts.of_peer.insert(peer, of_peer + bytes);
        self.computing.insert(key, (span, false));
        let memory = Taken { accounts: self.accounts.clone(), peer, bytes };
        let (tables, weights) = (None, WeightChange::None);
        let (sequences, used) = (Vec::new(), Instant::now());
        Ok(Session { span, prefix_rows: 0, sequences, limits, tables, weights, used, _memory: memory })
    }

    /// Ends sessions that were idle for a while, the one that was so for longest first, until there are `bytes`: who reserves and
    /// does nothing keeps nobody out. Their clients can open them again.
    fn make_room(&mut self, bytes: u64, now: Instant) {
        while self.bytes() + bytes > self.budget {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let Some((&key, session)) = oldest else { return };
            if now.saturating_duration_since(session.used) < IDLE {
                return;
            }
            self.sessions.remove(&key);
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
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// 100 bytes a page.
    fn memory(positions: u32) -> SessionMemory {
        SessionMemory { of_sequence: 100 * u64::from(positions).div_ceil(PAGE_TOKENS as u64), fixed: 0 }
    }

    fn span() -> Span {
        Span::new(0, 2).unwrap()
    }

    fn limits(max_sequences: u32, max_positions: u32) -> SessionOpen {
        SessionOpen { max_sequences, max_positions }
    }

    #[test]
    fn memory_is_taken_at_once_and_given_back_once() {
        let (mut store, peer, now) =
            (SessionStore::new(1000, Duration::from_secs(60)), PeerId::random(), Instant::now());
        store.open_stream(1);
        let key = (1, SessionId(5));
        let session = store.admit(key, peer, span(), limits(2, 65), memory(65)).unwrap();
        assert_eq!((store.bytes(), store.tokens_left(100)), (400, 6 * PAGE_TOKENS as u64));
        assert!(matches!(store.take(key), Err(Refusal::SessionGone)), "not there while it computes");
        store.end(key);
        store.put(key, session, now);
        assert!(matches!(store.take(key), Err(Refusal::SessionGone)), "it ended meanwhile");
        assert_eq!(store.bytes(), 0);
        let session = store.admit(key, peer, span(), limits(2, 65), memory(65)).unwrap();
        store.put(key, session, now);
        assert!(matches!(
            store.admit((1, SessionId(6)), peer, span(), limits(1, 128), memory(128)),
            Err(Refusal::Busy { .. })
        ));
        assert!(store.admit((1, SessionId(6)), PeerId::random(), span(), limits(1, 128), memory(128)).is_ok());
        assert!(matches!(
            store.admit((1, SessionId(7)), peer, span(), limits(6, 1), memory(1)),
            Err(Refusal::TooLarge { got: 600, limit: 500, .. })
        ));
        assert!(store.admit(key, peer, span(), limits(1, 1), memory(1)).is_ok(), "a session replaces its namesake");
        let with_tables = SessionMemory { fixed: 450, ..memory(1) };
        assert!(matches!(
            store.admit((1, SessionId(8)), PeerId::random(), span(), limits(1, 1), with_tables),
            Err(Refusal::TooLarge { got: 550, limit: 500, .. })
        ));
    }

    #[test]
    fn idle_sessions_make_room() {
        let (mut store, now) = (SessionStore::new(1000, Duration::from_secs(600)), Instant::now());
        store.open_stream(1);
        let long_ago = now.checked_sub(2 * IDLE).unwrap();
        for (id, used) in [(1, long_ago), (2, now)] {
            let key = (1, SessionId(id));
            let session = store.admit(key, PeerId::random(), span(), limits(1, 5 * 64), memory(5 * 64)).unwrap();
            store.put(key, session, used);
        }
        let third = store.admit((1, SessionId(3)), PeerId::random(), span(), limits(1, 64), memory(64));
        assert!(third.is_ok(), "the first one has gone");
        assert!(matches!(store.take((1, SessionId(1))), Err(Refusal::SessionGone)));
        let fourth = store.admit((1, SessionId(4)), PeerId::random(), span(), limits(1, 5 * 64), memory(5 * 64));
        assert!(matches!(fourth, Err(Refusal::Busy { .. })), "the second one was just used");
        assert!(store.take((1, SessionId(2))).is_ok());
    }

    #[test]
    fn who_has_its_share_takes_no_room_of_others() {
        let (mut store, now, peer) =
            (SessionStore::new(1000, Duration::from_secs(600)), Instant::now(), PeerId::random());
        store.open_stream(1);
        for (id, of) in [(1, PeerId::random()), (2, peer)] {
            let session = store.admit((1, SessionId(id)), of, span(), limits(1, 5 * 64), memory(5 * 64)).unwrap();
            store.put((1, SessionId(id)), session, now.checked_sub(2 * IDLE).unwrap());
        }
        let more = store.admit((1, SessionId(3)), peer, span(), limits(1, 64), memory(64));
        assert!(matches!(more, Err(Refusal::Busy { .. })));
        assert!(store.take((1, SessionId(1))).is_ok(), "it was idle, but nothing was gained by its end");
    }

    #[test]
    fn accounts_are_exact_after_a_thousand_sessions_of_every_fate() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let mut store = SessionStore::new(20_000, Duration::from_secs(60));
        let peers: Vec<PeerId> = (0..5).map(|_| PeerId::random()).collect();
        let mut now = Instant::now();
        let mut computing: Vec<(SessionKey, Session)> = Vec::new();
        for n in 0..1000u64 {
            let key = (rng.random_range(0..8), SessionId(n % 50));
            store.open_stream(key.0);
            let limits = limits(rng.random_range(1..4), rng.random_range(1..300));
            if let Ok(session) =
                store.admit(key, peers[(key.0 % 5) as usize], span(), limits, memory(limits.max_positions))
            {
                computing.push((key, session));
            }
            now += Duration::from_millis(rng.random_range(0..2000));
            match rng.random_range(0..6) {
                0 => store.forget_stream(rng.random_range(0..8)),
                1 => store.expire(now),
                2 => store.end((rng.random_range(0..8), SessionId(rng.random_range(0..50)))),
                3 => computing.extend(store.take(key).map(|session| (key, session))),
                _ => {
                    while let Some((key, session)) = computing.pop() {
                        if rng.random_bool(0.2) {
                            drop(session);
                        } else {
                            store.put(key, session, now);
                        }
                    }
                }
            }
            let held = store.sessions.values().chain(computing.iter().map(|(_, session)| session));
            assert_eq!(store.bytes(), held.map(|session| session._memory.bytes).sum::<u64>());
            assert_eq!(store.bytes(), lock(&store.accounts).of_peer.values().sum::<u64>());
            assert!(store.bytes() <= 20_000);
        }
        computing.into_iter().for_each(|(key, session)| store.put(key, session, now));
        (0..8).for_each(|stream| store.forget_stream(stream));
        assert_eq!((store.bytes(), lock(&store.accounts).of_peer.len()), (0, 0));
    }
}
