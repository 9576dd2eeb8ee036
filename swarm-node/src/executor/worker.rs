//! The thread that computes, and what it computes next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use petals_model::BlockStack;
use petals_protocol::Refusal;

use super::answer::{answer_pass, answer_steps};
use super::background::Background;
use super::beside::{self, Long, Taken};
use super::compute::Compute;
use super::crowd::Crowd;
use super::pass::{Comer, Pass, Work};
use super::{Shared, State};
use crate::lock::lock;
use crate::machine::kept::{Kept, QUIET};

pub(super) struct Worker {
    /// Of steps.
    pub(super) crowd: Crowd<Comer>,
    background: Background,
    /// Microseconds that others computed beside the pass in the background.
    beside: Arc<AtomicU64>,
    /// When it is the turn of tokens and the like.
    turn: Instant,
    kept: Kept,
    pub(super) shared: Arc<Shared>,
}

/// What comes next.
enum Next {
    Usual(Taken),
    /// It goes beside a long pass.
    Beside(Taken),
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let (background, beside) = (Background::default(), Arc::default());
        Self { crowd: Crowd::new(), background, beside, turn: Instant::now(), kept: Kept::default(), shared }
    }

    pub(super) fn run(mut self) {
        while let Some(next) = self.next() {
            match next {
                Next::Beside(taken) => {
                    let (began, in_turn) = (Instant::now(), beside::takes_turns(&taken.0));
                    self.background.is_contended();
                    self.run_beside(taken);
                    let took = began.elapsed();
                    self.beside.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
                    if in_turn {
                        self.turn = Instant::now() + took;
                    }
                }
                Next::Usual((pass, reply, blocks)) => {
                    if pass.is_unwanted(&reply) {
                        continue;
                    }
                    if self.goes_to_background(&pass, &blocks) {
                        self.begin_long((pass, reply, blocks));
                    } else {
                        self.run_here((pass, reply, blocks));
                    }
                }
            }
        }
    }

    fn run_here(&mut self, (pass, reply, blocks): Taken) {
        if matches!(pass.work, Work::Step { .. }) {
            self.run_steps((pass, reply), blocks);
        } else {
            self.run_pass((pass, reply, blocks), false);
        }
    }

    /// What [`beside::pop`] has chosen.
    pub(super) fn run_beside(&mut self, (pass, reply, blocks): Taken) {
        if pass.is_unwanted(&reply) {
            return;
        }
        if matches!(pass.work, Work::Step { .. }) {
            self.run_tokens((pass, reply), blocks);
        } else {
            self.run_pass((pass, reply, blocks), true);
        }
    }

    /// Makes what memory is estimated by.
    pub(super) fn estimates(&self) -> impl Fn(Arc<BlockStack>) -> Compute<'static> + use<> {
        let shared = self.shared.clone();
        move |blocks| Compute::new(blocks, &shared.config, &|| ())
    }

    /// Whether others can go on while a pass is computed.
    pub(super) fn goes_to_background(&self, pass: &Pass, blocks: &BlockStack) -> bool {
        beside::on_processors(blocks) && beside::is_long(pass, blocks, self.shared.speed.forward_rate())
    }

    fn begin_long(&mut self, (pass, reply, blocks): Taken) {
        let long = Long::new(&pass, &blocks);
        self.beside = Arc::default();
        let (shared, beside, ended) = (self.shared.clone(), self.beside.clone(), Ended(self.shared.clone()));
        let others = move || Duration::from_micros(beside.load(Ordering::Relaxed));
        let job = move || {
            // The last thing, whatever happens.
            let _ended = ended;
            let compute = Compute::new(blocks, &shared.config, &|| ());
            if matches!(pass.work, Work::Step { .. }) {
                answer_steps(&shared, &compute, vec![(pass, reply)], others);
            } else {
                answer_pass(&shared, &compute, (pass, reply), others);
            }
        };
        {
            let mut state = lock(&self.shared.state);
            (state.running, state.long) = (None, Some(long));
        }
        self.turn = Instant::now();
        if let Err(job) = self.background.begin(job) {
            job();
        }
    }

    /// The next pass, and the blocks to run it on.
    fn next(&mut self) -> Option<Next> {
        let mut state = lock(&self.shared.state);
        state.running = None;
        loop {
            if state.stopping {
                while let Some((_, reply)) = state.queue.pop() {
                    let _ = reply.send(Err(Refusal::Draining));
                }
                // What is under way in the background ends first.
                state.long?;
            } else if let Some(long) = state.long {
                let left = self.turn.saturating_duration_since(Instant::now());
                if let Some(taken) = beside::pop(&mut state, &long, left.is_zero(), Some(self.estimates())) {
                    state.running = Some(taken.0.layout.span);
                    return Some(Next::Beside(taken));
                }
                if !left.is_zero() && state.queue.len() > 0 {
                    let waited = self.shared.wake.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            } else if let Some(taken) = pop(&mut state) {
                state.running = Some(taken.0.layout.span);
                return Some(Next::Usual(taken));
            }
            let (woken, waited) = self.shared.wake.wait_timeout(state, QUIET).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            let idle = state.queue.len() == 0 && state.long.is_none() && state.for_nobody == 0;
            if waited.timed_out() && idle {
                drop(state);
                self.kept.give_back(Instant::now());
                state = lock(&self.shared.state);
            }
        }
    }
}

/// The next pass that can be computed; those that cannot are refused.
fn pop(state: &mut State) -> Option<Taken> {
    while let Some((pass, reply)) = state.queue.pop() {
        let asked = pass.layout.span;
        if let Some(blocks) = state.stacks.iter().find(|blocks| blocks.span().covers(asked)) {
            return Some((pass, reply, blocks.clone()));
        }
        // The node moved while the pass waited.
        let _ = reply.send(Err(match state.stacks.first() {
            Some(blocks) => Refusal::WrongSpan { asked, served: blocks.span() },
            None => Refusal::Draining,
        }));
    }
    None
}

/// Says that the pass in the background has ended, when dropped.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.0.state).long = None;
        self.0.wake.notify_all();
    }
}
