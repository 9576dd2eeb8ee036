//! Others' work between the blocks of a long pass, where blocks are computed by a device that runs one thing after the other.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Worker;
use super::answer::answer_pass;
use super::beside::{self, Long, Taken};
use super::compute::Compute;
use crate::lock::lock;

/// A pass computes at least for so long before it lets others go first: they would wait as long for each other.
const QUANTUM: Duration = Duration::from_millis(20);

impl Worker {
    /// Runs a pass that is no step. Beside a longer one itself, it lets only tokens go between its blocks.
    pub(super) fn run_pass(&mut self, (pass, reply, blocks): Taken, beside: bool) {
        let (shared, long) = (self.shared.clone(), Long::new(&pass, &blocks));
        let ahead = beside::blocks_within(QUANTUM, &pass, &blocks, shared.speed.forward_rate());
        let pauses = Mutex::new(Pauses::new(self, long, beside));
        let pause = || lock(&pauses).pause();
        let compute = Compute { ahead, ..Compute::new(blocks, &shared.config, &pause) };
        answer_pass(&shared, &compute, (pass, reply), || lock(&pauses).spent);
    }
}

/// The pauses of one pass.
pub(super) struct Pauses<'a> {
    worker: &'a mut Worker,
    pass: Long,
    /// Whether only tokens may go between its blocks: it goes beside a longer one itself.
    tokens_only: bool,
    /// When the next pause may be.
    next: Instant,
    /// And when it is the turn of tokens and the like.
    turn: Instant,
    /// Time of all of them.
    pub(super) spent: Duration,
}

impl<'a> Pauses<'a> {
    /// Of a pass that begins now.
    pub(super) fn new(worker: &'a mut Worker, pass: Long, tokens_only: bool) -> Self {
        let next = Instant::now() + QUANTUM;
        Self { worker, pass, tokens_only, next, turn: next, spent: Duration::ZERO }
    }

    /// Between two blocks.
    pub(super) fn pause(&mut self) {
        let began = Instant::now();
        if began < self.next {
            return;
        }
        let estimates = (!self.tokens_only).then(|| self.worker.estimates());
        let taken = beside::pop(&mut lock(&self.worker.shared.state), &self.pass, began >= self.turn, estimates);
        let Some(taken) = taken else { return };
        let in_turn = beside::takes_turns(&taken.0);
        self.worker.run_beside(taken);
        let (took, now) = (began.elapsed(), Instant::now());
        self.spent += took;
        self.next = now + QUANTUM;
        if in_turn {
            self.turn = now + took.max(QUANTUM);
        }
    }
}
