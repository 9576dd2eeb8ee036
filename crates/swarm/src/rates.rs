//! How often others may do something.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Whoever is remembered takes some tens of bytes; nobody who can afford more identities than this is stopped by rates.
const MAX_KNOWN: usize = 8192;

/// An allowance for each key: so many at once, refilled at a steady rate.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    burst: f64,
    per_second: f64,
    known: HashMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Hash + Eq> Rates<K> {
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        Self { burst: burst.into(), per_second: per_second.into(), known: HashMap::new() }
    }

    /// Takes one from the allowance of `key`; `false` if nothing is left.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> bool {
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&key) {
            self.forget(now);
        }
        let (burst, per_second) = (self.burst, self.per_second);
        let bucket = self.known.entry(key).or_insert(Bucket { left: burst, at: now });
        bucket.left = bucket.refilled(now, burst, per_second);
        bucket.at = now;
        let granted = bucket.left >= 1.0;
        if granted {
            bucket.left -= 1.0;
        }
        granted
    }

    /// Those with a full allowance need not be remembered.
    fn forget(&mut self, now: Instant) {
        let (burst, per_second) = (self.burst, self.per_second);
        self.known.retain(|_, bucket| bucket.refilled(now, burst, per_second) < burst);
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
    }
}

impl Bucket {
    fn refilled(&self, now: Instant, burst: f64, per_second: f64) -> f64 {
        let since: Duration = now.saturating_duration_since(self.at);
        (self.left + since.as_secs_f64() * per_second).min(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_used_up_and_refilled_for_each_by_itself() {
        let (mut rates, now) = (Rates::new(3, 2), Instant::now());
        assert_eq!((0..5).filter(|_| rates.take("a", now)).count(), 3);
        assert!(rates.take("b", now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..5).filter(|_| rates.take("a", later)).count(), 2);
        assert_eq!((0..5).filter(|_| rates.take("a", later + Duration::from_secs(100))).count(), 3);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut rates, now) = (Rates::new(1, 1), Instant::now());
        (0..3 * MAX_KNOWN).for_each(|key| assert!(rates.take(key, now)));
        assert!(rates.known.len() <= MAX_KNOWN);
        let later = now + Duration::from_secs(10);
        (0..MAX_KNOWN + 1).for_each(|key| assert!(rates.take(key + 10 * MAX_KNOWN, later)));
        assert!(rates.known.len() <= MAX_KNOWN);
    }
}
