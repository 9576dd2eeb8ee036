//! Steps of sessions that wait for the same blocks, as one batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_model::BlockStack;
use petals_protocol::Span;

use super::answer::answer_steps;
use super::beside::{self, MOST_ROWS, is_tokens, rows_of};
use super::compute::Compute;
use super::pass::{Comer, Pass, Work};
use super::{Reply, State, Worker};
use crate::lock::lock;

/// Rows of a batch. More would keep those that come meanwhile waiting for longer than they gain.
const MAX_ROWS: usize = 1024;

impl Worker {
    fn came(&mut self, pass: &Pass) {
        if let Some(who) = pass.comer() {
            self.crowd.came(who, pass.arrived);
        }
    }

    /// Runs a step and those of others that would come next in their lanes.
    pub(super) fn run_steps(&mut self, first: (Pass, Reply), blocks: Arc<BlockStack>) {
        let span = first.0.layout.span;
        let mut rows = rows_of(&first.0);
        let mut batch = vec![first];
        // Whoever can be computed while others go on is not computed with them.
        let (rate, stack) = (self.shared.speed.forward_rate(), blocks.clone());
        let is_long = |pass: &Pass| beside::on_processors(&stack) && beside::is_long(pass, &stack, rate);
        let mut fits = |(pass, _): &(Pass, Reply)| {
            let more = matches!(pass.work, Work::Step { .. }) && pass.layout.span == span;
            let fits = more && rows + rows_of(pass) <= MAX_ROWS && !is_long(pass);
            rows += if fits { rows_of(pass) } else { 0 };
            fits
        };
        let began = Instant::now();
        batch.iter().for_each(|(pass, _)| self.came(pass));
        let mut state = lock(&self.shared.state);
        // Other work is not kept waiting for those who are not here.
        let alike = |pass: &Pass| pass.comer().is_some_and(|(_, other)| other == span);
        if state.queue.iter().all(|(pass, _)| alike(pass)) {
            let here = |state: &State, who: &Comer| state.queue.iter().any(|(pass, _)| pass.comer() == Some(*who));
            state = self.crowd.meet(state, &self.shared.wake, |(_, other)| *other == span, here);
        }
        state = self.crowd.gather(state, &self.shared.wake, |state| state.queue.len());
        let others = state.queue.pop_those(&mut fits);
        drop(state);
        others.iter().for_each(|(pass, _)| self.came(pass));
        batch.extend(others);
        self.compute_steps(batch, blocks, span, began);
    }

    /// Runs tokens and those of others that could go with them, beside a long pass. Nobody is waited for.
    pub(super) fn run_tokens(&mut self, first: (Pass, Reply), blocks: Arc<BlockStack>) {
        let (span, mut rows) = (first.0.layout.span, first.0.layout.tokens());
        let mut batch = vec![first];
        let others = {
            let mut state = lock(&self.shared.state);
            let State { queue, long, .. } = &mut *state;
            queue.pop_those(&mut |(pass, _)| {
                let tokens = pass.layout.tokens();
                let fits = is_tokens(pass) && pass.layout.span == span && rows + tokens <= MOST_ROWS;
                let fits = fits && !beside::has_begun(long.as_ref(), pass);
                rows += if fits { tokens } else { 0 };
                fits
            })
        };
        batch.extend(others);
        batch.iter().for_each(|(pass, _)| self.came(pass));
        self.compute_steps(batch, blocks, span, Instant::now());
    }

    /// Runs steps of one span that have been taken out of the queue, and answers them.
    fn compute_steps(&mut self, batch: Vec<(Pass, Reply)>, blocks: Arc<BlockStack>, span: Span, began: Instant) {
        let (started, rows) = (Instant::now(), batch.iter().map(|(pass, _)| rows_of(pass)).sum::<usize>());
        let compute = Compute::new(blocks, &self.shared.config, &|| ());
        let (answered, computed) = answer_steps(&self.shared, &compute, batch, || Duration::ZERO);
        let more = lock(&self.shared.state).queue.len();
        tracing::debug!(steps = answered.len(), rows, more, ?computed, waited = ?started - began, "steps computed");
        self.crowd.computed(answered.len(), more, computed);
        answered.into_iter().for_each(|key| self.crowd.answered((key, span)));
    }
}
