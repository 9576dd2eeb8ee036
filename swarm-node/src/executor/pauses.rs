//! Others' work between the blocks of a long pass, where blocks are computed by a device that runs one thing after the other.

use std::time::{Duration, Instant};

use super::beside::{self, Long};
use super::worker::Worker;
use crate::lock::lock;

/// A pass computes at least for so long before it lets others go first: they would wait as long for each other.
const QUANTUM: Duration = Duration::from_millis(20);

/// The pauses of one pass.
pub(super) struct Pauses<'a> {
    worker: &'a mut Worker,
    pass: Long,
    /// Whether only tokens may go between its blocks: it goes beside a longer one itself.
    tokens_only: bool,
    /// When the next pause may be.
    next: Instant,
    /// Time of all of them.
    pub(super) spent: Duration,
}

impl<'a> Pauses<'a> {
    /// Of a pass that begins now.
    pub(super) fn new(worker: &'a mut Worker, pass: Long, tokens_only: bool) -> Self {
        Self { worker, pass, tokens_only, next: Instant::now() + QUANTUM, spent: Duration::ZERO }
    }

    /// Between two blocks.
    pub(super) fn pause(&mut self) {
        let began = Instant::now();
        if began < self.next {
            return;
        }
        let estimates = (!self.tokens_only).then(|| self.worker.estimates());
        let taken = beside::pop(&mut lock(&self.worker.shared.state), &self.pass, true, estimates);
        let Some(taken) = taken else { return };
        self.worker.run_beside(taken);
        let took = began.elapsed();
        self.spent += took;
        self.next = Instant::now() + took.max(QUANTUM);
    }
}
