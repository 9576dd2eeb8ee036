//! The head, computed for all texts of a process together.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use petals_model::{ClientModel, HeadError};
use tokio::sync::oneshot;

use crate::lock::lock;

/// A step of more rows reads a prompt; it takes too long to be waited for.
const FEW_ROWS: usize = 32;
/// Who has this part of a step's usual time behind it is waited for, for the other part at most.
const FAR_ENOUGH: f64 = 0.45;
const LONGEST_WAIT: f64 = 0.7;
/// After so many waits that did not bring all together only every so many times it is tried whether one does by now.
const MOST_IN_VAIN: u32 = 4;
const TRY_AGAIN: u32 = 16;

/// Of one text; its answer goes to whoever waits for it.
type Request = (Vec<f32>, oneshot::Sender<Result<Vec<f32>, HeadError>>);

/// Shared by all texts of a process, which it keeps in step.
///
/// With the vocabulary of today's models the head is as large as several blocks, and who reads it for each text by itself spends more
/// on it than the servers do on a batch of them. So texts that are there at the same time are computed together. If others are on
/// their way through the servers, those that are there wait for them for a while: from then on all of them go through servers and
/// head as one batch, which takes hardly longer than a single text and leaves the rest of the servers' time to others.
#[derive(Debug)]
pub(crate) struct SharedHead {
    model: Arc<ClientModel>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Request>,
    computing: bool,
    /// Steps on their way through the servers, by their numbers, and when they began.
    under_way: BTreeMap<u64, Instant>,
    next: u64,
    /// What such a step takes.
    usual: Duration,
    /// Waits since one brought all together.
    in_vain: u32,
    /// Times one could have waited since then.
    chances: u32,
}

/// A text's step on its way through the servers. The head waits for it, until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    head: Arc<SharedHead>,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = lock(&self.head.state);
        state.under_way.remove(&self.number);
        drop(state);
        self.head.changed.notify_one();
    }
}

impl SharedHead {
    pub(crate) fn new(model: Arc<ClientModel>) -> Self {
        Self { model, state: Mutex::default(), changed: Condvar::new() }
    }

    /// A step of so many rows begins.
    pub(crate) fn begin(self: &Arc<Self>, rows: usize) -> Option<UnderWay> {
        (rows <= FEW_ROWS).then(|| {
            let mut state = lock(&self.state);
            let number = state.next;
            state.next += 1;
            state.under_way.insert(number, Instant::now());
            UnderWay { head: self.clone(), number }
        })
    }

    /// Logits `[R, vocab]` of hidden states `[R, hidden]` that a step brought. `None` if the computation panicked.
    pub(crate) async fn logits(
        self: &Arc<Self>,
        hidden: Vec<f32>,
        step: Option<UnderWay>,
    ) -> Option<Result<Vec<f32>, HeadError>> {
        let (reply, result) = oneshot::channel();
        let begins = {
            let mut state = lock(&self.state);
            if let Some(began) = step.as_ref().and_then(|step| state.under_way.get(&step.number).copied()) {
                state.took(began.elapsed());
            }
            state.waiting.push((hidden, reply));
            !std::mem::replace(&mut state.computing, true)
        };
        // It waits now, and is under way no longer.
        drop(step);
        if begins {
            let head = self.clone();
            // Goes on for others if this text is given up.
            tokio::task::spawn_blocking(move || Computing(head).run());
        }
        result.await.ok()
    }

    fn compute(&self, batch: Vec<Request>) {
        let (rows, replies): (Vec<_>, Vec<_>) = batch.into_iter().filter(|(_, reply)| !reply.is_closed()).unzip();
        let together = if rows.len() > 1 { self.model.lm_logits(&rows.concat()).ok() } else { None };
        match together {
            Some(logits) => {
                let row = self.model.config().hidden_size;
                let mut rest = logits.as_slice();
                for (rows, reply) in rows.iter().zip(replies) {
                    let (own, others) = rest.split_at(rows.len() / row * self.model.config().vocab_size);
                    rest = others;
                    let _ = reply.send(Ok(own.to_vec()));
                }
            }
            // Whoever's rows are the matter, fails alone.
            None => rows.iter().zip(replies).for_each(|(rows, reply)| {
                let _ = reply.send(self.model.lm_logits(rows));
            }),
        }
    }
}

impl State {
    /// Waits for those that have most of their way behind them. Of two groups that are out of step one always meets the other like
    /// that; if both waited for each other, they never would.
    fn gather<'a>(mut state: MutexGuard<'a, Self>, changed: &Condvar) -> MutexGuard<'a, Self> {
        let (now, usual) = (Instant::now(), state.usual);
        let soon = state.under_way.iter().filter(|(_, began)| now > **began + usual.mul_f64(FAR_ENOUGH));
        let soon: Vec<u64> = soon.map(|(&number, _)| number).collect();
        if soon.is_empty() || !state.is_promising() {
            return state;
        }
        let end = now + usual.mul_f64(LONGEST_WAIT);
        while soon.iter().any(|number| state.under_way.contains_key(number)) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.in_vain = state.in_vain.saturating_add(1);
                return state;
            }
            state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.in_vain = 0;
        state
    }

    fn took(&mut self, time: Duration) {
        // A step that was repeated on another server says nothing of the others, and they must not wait as long.
        self.usual = if self.usual.is_zero() { time } else { (self.usual * 7 + time.min(self.usual * 2)) / 8 };
    }

    fn is_promising(&mut self) -> bool {
        self.chances = self.chances.wrapping_add(1);
        self.in_vain < MOST_IN_VAIN || self.chances.is_multiple_of(TRY_AGAIN)
    }
}

/// The one thread that computes. If it panics, those that wait are told, and the next text begins anew.
struct Computing(Arc<SharedHead>);

impl Computing {
    fn run(self) {
        let Self(head) = &self;
        loop {
            let mut state = lock(&head.state);
            if state.waiting.is_empty() {
                // Under the same lock as the look at what waits, or a text could come in between.
                state.computing = false;
                return;
            }
            state = State::gather(state, &head.changed);
            let batch = std::mem::take(&mut state.waiting);
            drop(state);
            head.compute(batch);
        }
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = lock(&self.0.state);
            (state.computing, state.waiting) = (false, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(400);

    /// Steps that have so many tenths of the usual time behind them.
    fn state(tenths: &[u32]) -> Mutex<State> {
        let now = Instant::now();
        let under_way = tenths.iter().map(|&tenths| now.checked_sub(STEP / 10 * tenths).unwrap()).enumerate();
        let under_way = under_way.map(|(number, began)| (number as u64, began)).collect();
        Mutex::new(State { under_way, usual: STEP, ..State::default() })
    }

    #[test]
    fn those_that_come_soon_are_waited_for_and_others_not() {
        let (state, changed) = (state(&[1, 6, 8]), Condvar::new());
        std::thread::scope(|scope| {
            let comers = scope.spawn(|| {
                for number in [1, 2] {
                    std::thread::sleep(STEP / 20);
                    lock(&state).under_way.remove(&number);
                    changed.notify_one();
                }
            });
            let state = State::gather(lock(&state), &changed);
            assert_eq!((state.under_way.len(), state.in_vain), (1, 0), "the one that has just begun is left");
            drop(state);
            comers.join().unwrap();
        });
        let started = Instant::now();
        drop(State::gather(lock(&state), &changed));
        assert!(started.elapsed() < STEP / 4, "nobody comes soon");
    }

    #[test]
    fn a_step_that_took_very_long_hardly_counts() {
        let mut state = State::default();
        state.took(STEP);
        state.took(100 * STEP);
        assert_eq!(state.usual, STEP * 9 / 8);
    }

    #[test]
    fn who_does_not_come_is_not_waited_for_again_and_again() {
        let (state, changed) = (state(&[9]), Condvar::new());
        let mut waits = 0;
        for _ in 0..2 * TRY_AGAIN {
            let mut now = lock(&state);
            now.usual = Duration::from_millis(20);
            let before = now.in_vain;
            waits += State::gather(now, &changed).in_vain - before;
        }
        assert!((MOST_IN_VAIN..=MOST_IN_VAIN + 2).contains(&waits), "{waits}");
    }
}
