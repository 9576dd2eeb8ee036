//! Whether a step should wait a moment for others that could share its pass.

use std::collections::HashMap;
use std::hash::Hash;
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

/// Who comes again within this part of a pass's usual time is waited for: with a pass of its own for each of two groups, both would wait longer.
const SOON_PART: f64 = 0.8;
/// Who has not come after so many times what it usually takes does not come.
const LATE: f64 = 1.25;
/// What is known of who has not come for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// Gathers steps that come at nearly the same time, of users who generate side by side.
///
/// A pass of few rows takes as long as its weights take to be read, however many rows share it. Users who were answered together
/// come again together, but not in the same instant: if the first of them went at once, the others would go behind it, and from
/// there on they would read all weights twice per token, here and at all servers that follow.
///
/// Users who are out of step already, each of whom comes back while the pass of another is computed, would stay so for ever. So whoever usually comes
/// back soon after an answer is waited for; one who does not come is no longer expected, until he has come back in time again.
#[derive(Debug)]
pub(super) struct Crowd<K> {
    /// Those who were answered before.
    comers: HashMap<K, Comer>,
    /// When several were last there at a time.
    together: Option<Instant>,
    /// What a pass takes, rather too short than too long.
    usual: Duration,
    /// Waits since one brought somebody.
    in_vain: u32,
    /// Passes that could have waited since then.
    chances: u32,
}

/// Who comes again and again.
#[derive(Debug)]
struct Comer {
    answered: Instant,
    /// Between an answer and the next step, as usual or rather longer; `None` before the first one.
    gap: Option<Duration>,
    /// Answered, and not back yet.
    away: bool,
}

impl<K: Copy + Eq + Hash> Crowd<K> {
    pub(super) fn new() -> Self {
        Self { comers: HashMap::new(), together: None, usual: Duration::ZERO, in_vain: 0, chances: 0 }
    }

    /// A step came.
    pub(super) fn came(&mut self, who: K, arrived: Instant) {
        if let Some(comer) = self.comers.get_mut(&who).filter(|comer| comer.away) {
            let took = arrived.saturating_duration_since(comer.answered);
            comer.gap = Some(comer.gap.map_or(took, |gap| took.max((gap * 3 + took) / 4)));
            comer.away = false;
        }
    }

    /// A step was answered.
    pub(super) fn answered(&mut self, who: K) {
        let now = Instant::now();
        let comer = self.comers.entry(who).or_insert(Comer { answered: now, gap: None, away: true });
        (comer.answered, comer.away) = (now, true);
    }

    /// Those who should be back soon, and until when they are waited for.
    fn expected(&mut self, now: Instant) -> Vec<(K, Instant)> {
        self.comers.retain(|_, comer| now.saturating_duration_since(comer.answered) < FORGOTTEN);
        if self.usual / LULL_PART < SHORTEST {
            return Vec::new();
        }
        let soon = self.usual.mul_f64(SOON_PART);
        let away = self.comers.iter().filter(|(_, comer)| comer.away);
        let gaps = away.filter_map(|(&who, comer)| Some((who, comer.answered, comer.gap.filter(|gap| *gap < soon)?)));
        gaps.map(|(who, answered, gap)| (who, answered + gap.mul_f64(LATE))).filter(|(_, end)| *end > now).collect()
    }

    /// Waits on `arrivals` for those of `alike` who should be back soon; `here` says whether somebody came.
    pub(super) fn meet<'a, T>(
        &mut self,
        mut queue: MutexGuard<'a, T>,
        arrivals: &Condvar,
        alike: impl Fn(&K) -> bool,
        here: impl Fn(&T, &K) -> bool,
    ) -> MutexGuard<'a, T> {
        let mut missing = self.expected(Instant::now());
        missing.retain(|(who, _)| alike(who) && !here(&queue, who));
        while let Some(end) = missing.iter().map(|(_, end)| *end).max() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.comers.retain(|who, _| !missing.iter().any(|(late, _)| late == who));
                break;
            }
            queue = arrivals.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            missing.retain(|(who, _)| !here(&queue, who));
        }
        queue
    }

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
        let (mut crowd, now) = (Crowd::<u8>::new(), Instant::now());
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
        let mut crowd = Crowd::<u8>::new();
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
        // On a busy machine nobody may come in time for once.
        crowd.in_vain = 1;
        let gathered = (0..100).any(|_| {
            drop(crowd.gather(queue.0.lock().unwrap(), &queue.1, |count| *count));
            crowd.in_vain == 0
        });
        *end.lock().unwrap() = true;
        comers.join().unwrap();
        assert!(gathered);
        crowd.in_vain = 0;
        drop(crowd.gather(queue.0.lock().unwrap(), &queue.1, |_| 0));
        assert_eq!(crowd.in_vain, 1);
    }

    /// Who comes back after so long, again and again.
    fn comes_back(crowd: &mut Crowd<char>, who: char, after: Duration) {
        for _ in 0..2 {
            crowd.answered(who);
            crowd.came(who, Instant::now() + after);
        }
        crowd.answered(who);
    }

    #[test]
    fn who_should_be_back_soon_is_waited_for_until_it_is_too_late() {
        let mut crowd = Crowd::new();
        crowd.computed(1, 0, Duration::from_secs(4));
        comes_back(&mut crowd, 'a', Duration::from_secs(1));
        comes_back(&mut crowd, 'b', Duration::from_millis(3500));
        crowd.answered('c');
        let expected =
            |crowd: &mut Crowd<char>| crowd.expected(Instant::now()).into_iter().map(|(who, _)| who).collect();
        let all: String = expected(&mut crowd);
        assert_eq!(all, "a", "b takes too long, of c nothing is known yet");
        let queue = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (started, comers) = (Instant::now(), queue.clone());
        let comer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            comers.0.lock().unwrap().push('a');
            comers.1.notify_one();
        });
        let meet = |crowd: &mut Crowd<char>, like: char| {
            let here = |queue: &Vec<char>, who: &char| queue.contains(who);
            crowd.meet(queue.0.lock().unwrap(), &queue.1, |who| *who == like, here).len()
        };
        assert_eq!(meet(&mut crowd, 'z'), 0, "nobody alike");
        assert_eq!(meet(&mut crowd, 'a'), 1);
        assert!(started.elapsed() >= Duration::from_millis(50), "{:?}", started.elapsed());
        comer.join().unwrap();
        queue.0.lock().unwrap().clear();
        assert_eq!(meet(&mut crowd, 'a'), 0, "waited for in vain");
        let all: String = expected(&mut crowd);
        assert_eq!(all, "", "and never again, until it has come twice");
    }
}
