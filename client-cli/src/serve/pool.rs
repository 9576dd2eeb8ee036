//! Finished texts that the servers still have, for requests that go on from them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use petals_client::Generator;

/// A generator with the text that its session has.
#[derive(Debug)]
struct Idle<G> {
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

    /// The generator whose text has the longest common beginning with `text`, if it has room for `needed` tokens. One is taken only
    /// if more of its text is used than lost: another conversation may go on from it. One that the text outgrew is dropped.
    pub(super) fn take(&self, model: &str, text: &[u32], needed: usize) -> Option<G> {
        let mut idle = self.lock();
        let common = |idle: &Idle<G>| idle.tokens.iter().zip(text).take_while(|(a, b)| a == b).count();
        let fits = |(_, idle): &(usize, &Idle<G>)| {
            let common = common(idle);
            idle.model == model && common > 0 && (2 * common >= idle.tokens.len() || common + 1 >= text.len())
        };
        let (at, _) = idle.iter().enumerate().filter(fits).max_by_key(|(_, idle)| common(idle))?;
        let found = idle.swap_remove(at);
        (found.room >= needed).then_some(found.generator)
    }

    /// Keeps a generator that has `text`, and room for `room` tokens. If there are too many the oldest goes.
    pub(super) fn put(&self, model: &str, text: Vec<u32>, room: usize, generator: G) {
        let mut idle = self.lock();
        idle.push(Idle { model: model.to_owned(), tokens: text, room, since: Instant::now(), generator });
        while idle.len() > self.most {
            let oldest = idle.iter().enumerate().min_by_key(|(_, idle)| idle.since).map(|(at, _)| at);
            oldest.map(|at| idle.swap_remove(at));
        }
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
