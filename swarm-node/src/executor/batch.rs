//! Steps of sessions that wait for the same blocks, as one batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use petals_model::BlockStack;
use petals_protocol::{BlockPasses, Refusal, Span, StashLevel};

use super::pass::{Done, Output, Pass, Work};
use super::sessions::SessionKey;
use super::steps::{self, Step, Stepped};
use super::{Reply, State, Worker};
use crate::lock::lock;

/// Rows of a batch. More would keep those that come meanwhile waiting for longer than they gain.
const MAX_ROWS: usize = 1024;

/// Whose step a pass is, and of which blocks.
pub(super) type Comer = (SessionKey, Span);

fn comer(pass: &Pass) -> Option<Comer> {
    match pass.work {
        Work::Step { session, .. } => Some(((pass.stream, session), pass.layout.span)),
        _ => None,
    }
}

fn rows_of(pass: &Pass) -> usize {
    pass.layout.tokens() + pass.layout.prefix_rows()
}

impl Worker {
    pub(super) fn came(&mut self, pass: &Pass) {
        if let Some(who) = comer(pass) {
            self.crowd.came(who, pass.arrived);
        }
    }

    /// Runs a step and those of others that would come next in their lanes.
    pub(super) fn run_steps(&mut self, first: (Pass, Reply), blocks: Arc<BlockStack>) {
        let span = first.0.layout.span;
        let mut rows = rows_of(&first.0);
        let mut batch = vec![first];
        let mut fits = |(pass, _): &(Pass, Reply)| {
            let more = matches!(pass.work, Work::Step { .. }) && pass.layout.span == span;
            let fits = more && rows + rows_of(pass) <= MAX_ROWS;
            rows += if fits { rows_of(pass) } else { 0 };
            fits
        };
        let began = Instant::now();
        batch.iter().for_each(|(pass, _)| self.came(pass));
        let mut state = lock(&self.shared.state);
        // Other work is not kept waiting for those who are not here.
        let alike = |pass: &Pass| comer(pass).is_some_and(|(_, other)| other == span);
        if state.queue.iter().all(|(pass, _)| alike(pass)) {
            let here = |state: &State, who: &Comer| state.queue.iter().any(|(pass, _)| comer(pass) == Some(*who));
            state = self.crowd.meet(state, &self.shared.wake, |(_, other)| *other == span, here);
        }
        state = self.crowd.gather(state, &self.shared.wake, |state| state.queue.len());
        let others = state.queue.pop_those(&mut fits);
        drop(state);
        others.iter().for_each(|(pass, _)| self.came(pass));
        batch.extend(others);
        self.compute_steps(batch, blocks, span, began);
    }

    /// Runs steps of one span that have been taken out of the queue, and answers them.
    pub(super) fn compute_steps(
        &mut self,
        batch: Vec<(Pass, Reply)>,
        blocks: Arc<BlockStack>,
        span: Span,
        began: Instant,
    ) {
        let started = Instant::now();
        let rows: usize = batch.iter().map(|(pass, _)| rows_of(pass)).sum();
        let (mut steps, mut waiting) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for (pass, reply) in batch {
            let queued = started.saturating_duration_since(pass.arrived);
            let Pass { party, stream, layout, work, deadline, .. } = pass;
            let Work::Step { inputs, session, starts, order, open } = work else { continue };
            if reply.is_closed() || started > deadline {
                continue;
            }
            waiting.push((reply, queued, (stream, session)));
            steps.push(Step { key: (stream, session), party, layout, inputs, starts, order, open });
        }
        let compute = self.compute(blocks, &|| ());
        let run = || steps::run(&compute, &self.shared.sessions, &mut self.prefixes, steps);
        let results = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            tracing::error!("a step panicked");
            waiting.iter().for_each(|(.., key)| lock(&self.shared.sessions).abandon(*key));
            Vec::new()
        });
        let computed = started.elapsed();
        self.record(computed);
        let more = lock(&self.shared.state).queue.len();
        tracing::debug!(steps = waiting.len(), rows, more, ?computed, waited = ?started - began, "steps computed");
        self.crowd.computed(waiting.len(), more, computed);
        let passes = BlockPasses { forward: span.len() as u32, backward: 0 };
        let mut results = results.into_iter();
        for (reply, queued, key) in waiting {
            self.crowd.answered((key, span));
            let failed = || Err(Refusal::Internal { what: "the computation failed".into() });
            let done = results.next().unwrap_or_else(failed).map(|Stepped { text, prefix }| {
                let output = Output::Forward { text, prefix, stash: StashLevel::None, keys_values: None };
                Done { output, passes, queued, computed }
            });
            if reply.send(done).is_err() {
                // The request was given up meanwhile. A client that goes on opens the session again.
                lock(&self.shared.sessions).end(key);
            }
        }
    }
}
