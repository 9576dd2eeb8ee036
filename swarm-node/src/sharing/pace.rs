//! How fast files are given to others.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::lock::lock;

/// Least rate that can be asked for. With less, others would leave for the hub.
pub(crate) const LEAST_RATE: u64 = 1 << 20;
/// Files that are given at a time, if the rate gives each of them [`LEAST_RATE`].
const MOST_AT_A_TIME: u64 = 8;
/// Bytes that are read and sent at a time.
const PIECE: u64 = 1 << 18;

/// Bytes a second, of all that is given together.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<u64>,
    /// When the next piece may go.
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate, next: Mutex::new(Instant::now()) }
    }

    /// Files that may be given at a time: fewer if others would find each of them slow.
    pub(super) fn at_a_time(&self) -> usize {
        let fit = self.rate.map_or(MOST_AT_A_TIME, |rate| rate / LEAST_RATE);
        usize::try_from(fit.clamp(1, MOST_AT_A_TIME)).unwrap_or(1)
    }

    /// Bytes of a piece: no more than an eighth of a second's.
    pub(super) fn piece(&self) -> usize {
        let piece = self.rate.map_or(PIECE, |rate| (rate / 8).clamp(1 << 12, PIECE));
        usize::try_from(piece).unwrap_or(1 << 12)
    }

    /// Waits until so many bytes may go.
    pub(super) async fn wait(&self, bytes: usize) {
        if let Some(due) = self.due(bytes, Instant::now()) {
            tokio::time::sleep_until(due).await;
        }
    }

    /// When so many bytes may go; `None` for at once.
    fn due(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let mut next = lock(&self.next);
        let due = (*next).max(now);
        *next = due + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        (due > now).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_all_together_keep_to_the_rate() {
        let (pace, start) = (Pace::new(Some(4 << 20)), Instant::now() + Duration::from_secs(1));
        assert_eq!((pace.at_a_time(), pace.piece()), (4, 1 << 18));
        assert_eq!(pace.due(pace.piece(), start), None, "the first one goes at once");
        for piece in 1..32u32 {
            let due = pace.due(pace.piece(), start).unwrap() - start;
            assert!((due.as_secs_f64() - f64::from(piece) / 16.0).abs() < 1e-6, "{piece}: {due:?}");
        }
        // What was not used is not saved up.
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.due(pace.piece(), later), None);
        assert!(pace.due(pace.piece(), later).is_some());
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let (pace, now) = (Pace::new(None), Instant::now());
        assert!((0..9).all(|_| pace.due(1 << 30, now).is_none()));
        assert_eq!((pace.at_a_time(), pace.piece()), (8, 1 << 18));
        let slow = Pace::new(Some(LEAST_RATE));
        assert_eq!((slow.at_a_time(), slow.piece()), (1, 1 << 17));
    }
}
