//! Tokens between the blocks of a long pass.
//!
//! A pass of thousands of rows over all blocks takes seconds, and whoever generates would wait for all of it. So between two of its blocks the
//! tokens that wait are computed, in turn with it: no more of the time is theirs than the pass has for itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_model::BlockStack;
use petals_protocol::Span;

use super::pass::{Pass, Work};
use super::{Reply, Worker};
use crate::lock::lock;

/// A pass computes at least for so long before it lets tokens go first: they would wait as long for each other.
const QUANTUM: Duration = Duration::from_millis(20);
/// Rows of a step that goes between blocks, and of all that go together. Their memory comes on top of the pass's, so they are few.
const MOST_ROWS_OF_ONE: usize = 16;
const MOST_ROWS: usize = 64;

/// Steps of one span, and the blocks for them.
type Batch = (Vec<(Pass, Reply)>, Arc<BlockStack>, Span);

/// The pauses of one pass.
pub(super) struct Pauses<'a> {
    worker: &'a mut Worker,
    /// When the next pause may be.
    next: Instant,
    /// Time of all of them.
    pub(super) spent: Duration,
}

/// Whether a step is that of tokens: it goes on with a session, by a few rows.
fn is_tokens(pass: &Pass) -> bool {
    matches!(pass.work, Work::Step { open: None, .. }) && pass.layout.tokens() <= MOST_ROWS_OF_ONE
}

impl<'a> Pauses<'a> {
    /// Of a pass that begins now.
    pub(super) fn new(worker: &'a mut Worker) -> Self {
        Self { worker, next: Instant::now() + QUANTUM, spent: Duration::ZERO }
    }

    /// Between two blocks.
    pub(super) fn pause(&mut self) {
        let began = Instant::now();
        if began < self.next {
            return;
        }
        let Some((batch, blocks, span)) = self.waiting() else { return };
        batch.iter().for_each(|(pass, _)| self.worker.came(pass));
        self.worker.compute_steps(batch, blocks, span, began);
        let took = began.elapsed();
        self.spent += took;
        self.next = Instant::now() + took.max(QUANTUM);
    }

    /// Tokens that wait, all of one span, and the blocks for them.
    fn waiting(&self) -> Option<Batch> {
        let mut state = lock(&self.worker.shared.state);
        if state.queue.len() == 0 || state.stopping {
            return None;
        }
        let (mut chosen, mut rows) = (None, 0);
        let (queue, stacks) = {
            let state = &mut *state;
            (&mut state.queue, &state.stacks)
        };
        let batch = queue.pop_those(&mut |(pass, _)| {
            let (span, tokens) = (pass.layout.span, pass.layout.tokens());
            let fits = is_tokens(pass) && rows + tokens <= MOST_ROWS && chosen.is_none_or(|(of, _)| of == span);
            let number = if fits { stacks.iter().position(|blocks| blocks.span().covers(span)) } else { None };
            if let Some(number) = number {
                rows += tokens;
                chosen = Some((span, number));
            }
            number.is_some()
        });
        let (span, number) = chosen?;
        Some((batch, stacks.get(number)?.clone(), span))
    }
}

#[cfg(test)]
mod tests;
