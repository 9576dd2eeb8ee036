//! What training forwards leave behind for their backwards.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use petals_protocol::{PassLayout, StashId};

/// A stash is only ever used on the stream that left it, so nobody can name another client's.
pub(crate) type StashKey = (u64, StashId);

/// Kept values under a byte budget and a time limit, evicted oldest first. A lost stash is an ordinary answer: the client
/// sends the inputs again.
#[derive(Debug)]
pub(crate) struct StashStore<S> {
    kept: HashMap<StashKey, Kept<S>>,
    order: VecDeque<(u64, StashKey)>,
    /// Streams that may still take what they left.
    open: HashSet<u64>,
    next: u64,
    bytes: u64,
    budget: u64,
    lifetime: Duration,
}

#[derive(Debug)]
struct Kept<S> {
    layout: PassLayout,
    value: S,
    bytes: u64,
    number: u64,
    since: Instant,
}

impl<S> StashStore<S> {
    pub(crate) fn new(budget: u64, lifetime: Duration) -> Self {
        let (kept, order, open) = (HashMap::new(), VecDeque::new(), HashSet::new());
        Self { kept, order, open, next: 0, bytes: 0, budget, lifetime }
    }

    /// Lets a stream leave stashes until [`Self::forget_stream`].
    pub(crate) fn open_stream(&mut self, stream: u64) {
        self.open.insert(stream);
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Evicts until `bytes` more fit. `false` if they never will.
    pub(crate) fn make_room(&mut self, bytes: u64, now: Instant) -> bool {
        if bytes > self.budget {
            return false;
        }
        while let Some(&(number, key)) = self.order.front() {
            let kept = self.kept.get(&key).filter(|kept| kept.number == number);
            let expired = kept.is_some_and(|kept| now.duration_since(kept.since) > self.lifetime);
            if kept.is_some() && !expired && self.bytes + bytes <= self.budget {
                break;
            }
            self.order.pop_front();
            if kept.is_some() {
                self.remove(key);
            }
        }
        true
    }

    /// Keeps `value` until it is taken, evicted or expired. Call [`Self::make_room`] before computing it. `false`, and
    /// nothing is kept, if the stream ended while it was computed: nobody would ever take it.
    pub(crate) fn insert(&mut self, key: StashKey, layout: PassLayout, value: S, bytes: u64, now: Instant) -> bool {
        self.remove(key);
        if !self.open.contains(&key.0) {
            return false;
        }
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.order.push_back((number, key));
        self.kept.insert(key, Kept { layout, value, bytes, number, since: now });
        true
    }

    /// The value, if it is still there and was made under the same layout.
    pub(crate) fn take(&mut self, key: StashKey, layout: &PassLayout) -> Option<S> {
        let kept = self.remove(key)?;
        (kept.layout == *layout).then_some(kept.value)
    }

    /// Drops one.
    pub(crate) fn forget(&mut self, key: StashKey) {
        self.remove(key);
    }

    /// Drops all of a stream that ended, now and from now on.
    pub(crate) fn forget_stream(&mut self, stream: u64) {
        self.open.remove(&stream);
        let keys: Vec<StashKey> = self.kept.keys().filter(|key| key.0 == stream).copied().collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: StashKey) -> Option<Kept<S>> {
        let kept = self.kept.remove(&key)?;
        self.bytes -= kept.bytes;
        if self.order.len() > 2 * self.kept.len() + 16 {
            let live = &self.kept;
            self.order.retain(|(number, key)| live.get(key).is_some_and(|kept| kept.number == *number));
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::{Injection, Span};

    fn layout(tokens: u32) -> PassLayout {
        let span = Span::new(0, 1).unwrap();
        PassLayout { span, lengths: vec![tokens], prefix_len: 0, injection: Injection::None, read_rows: None }
    }

    fn store<S>(budget: u64) -> StashStore<S> {
        let mut store = StashStore::new(budget, Duration::from_secs(60));
        store.open_stream(1);
        store.open_stream(2);
        store
    }

    fn key(stream: u64, id: u64) -> StashKey {
        (stream, StashId(id))
    }

    #[test]
    fn a_stash_is_used_once_and_only_under_its_layout() {
        let now = Instant::now();
        let mut store = store(100);
        assert!(store.insert(key(1, 1), layout(3), "a", 10, now));
        assert!(store.insert(key(1, 2), layout(3), "b", 10, now));
        assert_eq!(store.take(key(2, 1), &layout(3)), None, "another stream");
        assert_eq!(store.take(key(1, 1), &layout(3)), Some("a"));
        assert_eq!(store.take(key(1, 1), &layout(3)), None);
        assert_eq!(store.take(key(1, 2), &layout(4)), None, "another layout");
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn the_oldest_goes_first_and_the_budget_holds() {
        let now = Instant::now();
        let mut store = store(25);
        for id in 0..2 {
            assert!(store.make_room(10, now));
            assert!(store.insert(key(1, id), layout(1), id, 10, now));
        }
        assert!(store.make_room(10, now));
        assert_eq!((store.bytes(), store.take(key(1, 0), &layout(1))), (10, None));
        assert!(!store.make_room(26, now));
        assert_eq!(store.take(key(1, 1), &layout(1)), Some(1), "an impossible wish evicts nothing");
    }

    #[test]
    fn time_and_the_end_of_a_stream_free_memory() {
        let start = Instant::now();
        let mut store = store(100);
        assert!(store.insert(key(1, 1), layout(1), (), 10, start));
        assert!(store.insert(key(2, 1), layout(1), (), 10, start + Duration::from_secs(50)));
        assert!(store.make_room(0, start + Duration::from_secs(61)));
        assert_eq!(store.bytes(), 10);
        store.forget_stream(2);
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn what_comes_after_the_end_of_its_stream_is_not_kept() {
        let mut store = store(100);
        store.forget_stream(1);
        assert!(!store.insert(key(1, 1), layout(1), (), 10, Instant::now()));
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn bookkeeping_does_not_grow_with_use() {
        let now = Instant::now();
        let mut store = store(100);
        for id in 0..1000 {
            assert!(store.insert(key(1, id), layout(1), (), 1, now));
            store.forget(key(1, id));
        }
        assert!(store.order.len() < 40);
    }
}
