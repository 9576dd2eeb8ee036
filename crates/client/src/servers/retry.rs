//! How long to wait before the next attempt, and when to stop.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use petals_swarm::PeerId;

/// Waits between attempts: none before the first retry, then doubling up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Attempts at one piece of work since its last progress. Knows no clock: the caller says what time it is.
#[derive(Debug)]
pub(crate) struct Retry {
    since: Option<Instant>,
    attempts: u32,
    patience: Duration,
    rejected_by: HashSet<PeerId>,
    doubtful: Vec<PeerId>,
}

impl Retry {
    /// Gives up when `patience` has passed since the first failure.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { since: None, attempts: 0, patience, rejected_by: HashSet::new(), doubtful: Vec::new() }
    }

    /// Counts a failure. How long to wait before the next attempt; `None` if there should be none.
    pub(crate) fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        self.since.get_or_insert(now);
        if self.is_over(now) {
            return None;
        }
        self.attempts += 1;
        let doubled = FIRST_WAIT * 2u32.pow(self.attempts.saturating_sub(2).min(10));
        let wait = if self.attempts == 1 { Duration::ZERO } else { doubled.min(LONGEST_WAIT) };
        Some(wait.min(self.left(now)))
    }

    /// Failures so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A server called the request itself wrong. With `doubtful`, that is a fault of its own if others do not.
    pub(crate) fn rejected(&mut self, peer: PeerId, doubtful: bool) {
        if self.rejected_by.insert(peer) && doubtful {
            self.doubtful.push(peer);
        }
    }

    /// Servers that called the request itself wrong.
    pub(crate) fn rejected_by(&self) -> &HashSet<PeerId> {
        &self.rejected_by
    }

    /// Those of them that nobody should agree with.
    pub(crate) fn doubtful(&self) -> &[PeerId] {
        &self.doubtful
    }

    /// Time since the first failure.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Time until giving up.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.patience.saturating_sub(self.elapsed(now))
    }

    /// Whether the patience is used up.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.attempts > 0 && self.left(now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_limit_and_end() {
        let mut retry = Retry::new(Duration::from_secs(60));
        let (mut now, mut waits) = (Instant::now(), Vec::new());
        while let Some(wait) = retry.next_wait(now) {
            waits.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(waits[..5], [0, 100, 200, 400, 800]);
        assert_eq!(waits.iter().max(), Some(&10_000));
        assert_eq!(waits.iter().sum::<u128>(), 60_000, "the last wait ends with the patience");
    }

    #[test]
    fn no_patience_means_one_retry_at_once() {
        let (mut retry, now) = (Retry::new(Duration::ZERO), Instant::now());
        assert_eq!(retry.next_wait(now), Some(Duration::ZERO));
        assert_eq!(retry.next_wait(now), None);
    }
}
