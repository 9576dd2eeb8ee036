//! Finished texts that the servers still have, for requests that go on from them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use petals_client::Generator;

use super::caller::Caller;

/// A generator with the text that its session has.
#[derive(Debug)]
struct Idle<G> {
    caller: Caller,
    model: String,
    tokens: Vec<u32>,
    room: usize,
    since: Instant,
    generator: G,
}

/// Generators between two requests. Dropping one ends its session on the servers.
#[derive(Debug)]
pub(crate) struct Pool<G = Generator> {
    idle: Mutex<Vec<Idle<G>>>,
    most: usize,
    timeout: Duration,
}

impl<G> Pool<G> {
    /// Keeps at most `most` generators for `timeout` at most.
    pub(crate) fn new(most: usize, timeout: Duration) -> Self {
        Self { idle: Mutex::new(Vec::new()), most, timeout }
    }

    /// The generator of a caller and a model whose text has the longest common beginning with `text`, if it has room for `needed` tokens. One is taken only
    /// if more of its text is used than lost: another conversation may go on from it. One that the text outgrew is dropped.
    pub(super) fn take(&self, (caller, model): (Caller, &str), text: &[u32], needed: usize) -> Option<G> {
        let mut idle = self.lock();
        let common = |idle: &Idle<G>| idle.tokens.iter().zip(text).take_while(|(a, b)| a == b).count();
        let fits = |(_, idle): &(usize, &Idle<G>)| {
            let common = common(idle);
            (idle.caller, idle.model.as_str()) == (caller, model)
                && common > 0
                && (2 * common >= idle.tokens.len() || common + 1 >= text.len())
        };
        let (at, _) = idle.iter().enumerate().filter(fits).max_by_key(|(_, idle)| common(idle))?;
        let found = idle.swap_remove(at);
        (found.room >= needed).then_some(found.generator)
    }

    /// Keeps a generator that has `text`, and room for `room` tokens. If there are too many the oldest goes.
    pub(super) fn put(&self, (caller, model): (Caller, &str), text: Vec<u32>, room: usize, generator: G) {
        let mut idle = self.lock();
        idle.push(Idle { caller, model: model.to_owned(), tokens: text, room, since: Instant::now(), generator });
        while idle.len() > self.most {
            remove_oldest(&mut idle);
        }
    }

    /// Drops the oldest.
    pub(super) fn give_up_oldest(&self) {
        remove_oldest(&mut self.lock());
    }

    /// Drops what has been idle for too long.
    pub(super) fn expire(&self) {
        self.lock().retain(|idle| idle.since.elapsed() < self.timeout);
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Generators kept.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle<G>>> {
        // Nothing panics while it is locked; and if, the list is whole.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_oldest<G>(idle: &mut Vec<Idle<G>>) {
    let oldest = idle.iter().enumerate().min_by_key(|(_, idle)| idle.since).map(|(at, _)| at);
    oldest.map(|at| idle.swap_remove(at));
}

#[cfg(test)]
mod tests {
    use super::super::caller::Callers;
    use super::*;

    fn pool(most: usize) -> Pool<&'static str> {
        Pool::new(most, Duration::from_secs(60))
    }

    fn anybody() -> Caller {
        Callers::new(true).by_key(0)
    }

    #[test]
    fn nobody_gets_what_is_of_somebody_else() {
        let (pool, callers) = (pool(8), Callers::new(false));
        let [one, other] = [0, 1].map(|number| callers.by_key(number));
        pool.put((one, "m"), vec![1, 2, 3, 4], 100, "a secret");
        assert_eq!(pool.take((other, "m"), &[1, 2, 3, 4, 5], 50), None);
        assert_eq!(pool.take((one, "m"), &[1, 2, 3, 4, 5], 50), Some("a secret"));
    }

    #[test]
    fn the_longest_common_beginning_is_gone_on_from() {
        let pool = pool(8);
        pool.put((anybody(), "m"), vec![1, 2, 3, 4], 100, "short");
        pool.put((anybody(), "m"), vec![1, 2, 3, 4, 5, 6], 100, "long");
        pool.put((anybody(), "m:a"), vec![1, 2, 3, 4, 5, 6, 7], 100, "of an adapter");
        assert_eq!(pool.take((anybody(), "m"), &[1, 2, 3, 4, 5, 6, 7, 8], 50), Some("long"));
        assert_eq!(pool.take((anybody(), "m"), &[1, 2, 3, 4, 5, 6, 7, 8], 50), Some("short"));
        assert_eq!(pool.take((anybody(), "m"), &[1, 2, 3, 4, 5, 6, 7, 8], 50), None);
        assert_eq!(pool.len(), 1);
    }

    #[test]
    fn another_conversation_with_the_same_beginning_is_left_alone() {
        let pool = pool(8);
        pool.put((anybody(), "m"), vec![1, 2, 3, 4, 5, 6, 7, 8], 100, "other");
        assert_eq!(pool.take((anybody(), "m"), &[1, 2, 9, 9, 9], 50), None);
        assert_eq!(pool.take((anybody(), "m"), &[9], 50), None);
        // The same prompt again has all that it needs there.
        assert_eq!(pool.take((anybody(), "m"), &[1, 2, 9], 50), Some("other"));
    }

    #[test]
    fn what_a_text_outgrew_is_dropped() {
        let pool = pool(8);
        pool.put((anybody(), "m"), vec![1, 2], 10, "small");
        assert_eq!(pool.take((anybody(), "m"), &[1, 2, 3], 11), None);
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn only_so_many_are_kept_and_only_for_so_long() {
        let pool = pool(2);
        for (token, name) in [(1, "a"), (2, "b"), (3, "c")] {
            pool.put((anybody(), "m"), vec![token], 10, name);
        }
        assert_eq!((pool.len(), pool.take((anybody(), "m"), &[1], 2)), (2, None));
        pool.give_up_oldest();
        assert_eq!((pool.take((anybody(), "m"), &[2], 2), pool.take((anybody(), "m"), &[3], 2)), (None, Some("c")));
        let short = Pool::new(2, Duration::ZERO);
        short.put((anybody(), "m"), vec![1], 10, "a");
        short.expire();
        assert_eq!(short.len(), 0);
        let none = Pool::new(0, Duration::from_secs(60));
        none.put((anybody(), "m"), vec![1], 10, "a");
        assert_eq!(none.len(), 0);
    }
}
