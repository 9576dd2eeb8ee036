//! Whether a step should wait a moment for others that could share its pass.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// This part of a pass's usual time is not too long to wait for the next arrival.
const LULL_PART: u32 = 16;
/// Bounds of such a wait: below it takes longer than it gains, above it would be felt.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(2);
/// Waits behind one another until the pass goes in any case.
const MOST_LULLS: u32 = 4;
/// Steps have come one by one for so long that nobody is waited for.
const ALONE: Duration = Duration::from_secs(1);
/// After so many waits in vain only every so many passes it is tried whether somebody comes by now.
const MOST_IN_VAIN: u32 = 4;
const TRY_AGAIN: u32 = 16;

/// Gathers steps that come at nearly the same time, of users who generate side by side.
///
/// A pass of few rows takes as long as its weights take to be read, however many rows share it. Users who were answered together
/// come again together, but not in the same instant: if the first of them went at once, the others would go behind it, and from
/// there on they would read all weights twice per token, here and at all servers that follow.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// When several were last there at a time.
    together: Option<Instant>,
    /// What a pass takes, rather too short than too long.
    usual: Duration,
    /// Waits since one brought somebody.
    in_vain: u32,
    /// Passes that could have waited since then.
    chances: u32,
}

impl Crowd {
    /// Waits on `arrivals` until nobody has come for a moment, if steps come several at a time; `waiting` counts those that came.
    pub(super) fn gather<'a, T>(
        &mut self,
        mut queue: MutexGuard<'a, T>,
        arrivals: &Condvar,
        waiting: impl Fn(&T) -> usize,
    ) -> MutexGuard<'a, T> {
        let mut now = Instant::now();
        let Some(lull) = self.lull(now) else { return queue };
        let (all, end, mut quiet) = (waiting(&queue), now + lull * MOST_LULLS, now + lull);
        while now < quiet.min(end) {
            let before = waiting(&queue);
            queue = arrivals.wait_timeout(queue, quiet.min(end) - now).unwrap_or_else(PoisonError::into_inner).0;
            now = Instant::now();
            if waiting(&queue) > before {
                quiet = now + lull;
            }
        }
        self.in_vain = if waiting(&queue) > all { 0 } else { self.in_vain.saturating_add(1) };
        queue
    }

    /// Takes note of `passes` that were computed together, and of those that wait now.
    pub(super) fn computed(&mut self, passes: usize, waiting: usize, took: Duration) {
        if passes + waiting > 1 {
            self.together = Some(Instant::now());
        }
        let longer = took.saturating_sub(self.usual) / 8;
        self.usual = if self.usual.is_zero() { took } else { took.min(self.usual + longer) };
    }

    fn lull(&mut self, now: Instant) -> Option<Duration> {
        let crowded = now.saturating_duration_since(self.together?) < ALONE;
        let lull = (self.usual / LULL_PART).min(LONGEST);
        if !crowded || lull < SHORTEST {
            return None;
        }
        self.chances = self.chances.wrapping_add(1);
        (self.in_vain < MOST_IN_VAIN || self.chances.is_multiple_of(TRY_AGAIN)).then_some(lull)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const PASS: Duration = Duration::from_millis(16);

    #[test]
    fn only_those_who_come_in_company_are_waited_for() {
        let (mut crowd, now) = (Crowd::default(), Instant::now());
        crowd.computed(1, 0, PASS);
        assert_eq!(crowd.lull(now), None);
        crowd.computed(1, 1, PASS);
        assert_eq!(crowd.lull(Instant::now()), Some(PASS / LULL_PART));
        assert_eq!(crowd.lull(Instant::now() + 2 * ALONE), None);
        crowd.in_vain = MOST_IN_VAIN;
        let chances = (0..2 * TRY_AGAIN).filter(|_| crowd.lull(Instant::now()).is_some());
        assert_eq!(chances.count(), 2, "nobody came for long");
        crowd.in_vain = 0;
        crowd.computed(2, 0, Duration::from_micros(100));
        assert_eq!(crowd.lull(Instant::now()), None, "too little to gain");
    }

    #[test]
    fn who_comes_within_the_lull_is_gathered_and_nobody_waits_for_ever() {
        let mut crowd = Crowd::default();
        crowd.computed(2, 0, Duration::from_secs(2));
        let queue = Arc::new((Mutex::new(0), Condvar::new()));
        let (comers, end) = (queue.clone(), Arc::new(Mutex::new(false)));
        let ended = end.clone();
        let comers = std::thread::spawn(move || {
            while !*ended.lock().unwrap() {
                *comers.0.lock().unwrap() += 1;
                comers.1.notify_one();
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let gathered = *crowd.gather(queue.0.lock().unwrap(), &queue.1, |count| *count);
        *end.lock().unwrap() = true;
        comers.join().unwrap();
        assert!(gathered > 1 && crowd.in_vain == 0);
        drop(crowd.gather(queue.0.lock().unwrap(), &queue.1, |_| 0));
        assert_eq!(crowd.in_vain, 1);
    }
}
