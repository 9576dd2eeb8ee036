//! Computing what was taken out of the queue, and answering whoever asked for it. On whichever thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use petals_protocol::{BlockPasses, Refusal, StashId, StashLevel};

use super::compute::Compute;
use super::pass::{Done, Output, Pass, Work};
use super::sessions::SessionKey;
use super::steps::{self, Step, Stepped};
use super::{Reply, Shared};
use crate::lock::lock;

/// Speed is learned from passes beside which others took a smaller part of the time.
const OTHERS_PART: u32 = 10;

/// Computes a pass that is no step, and answers it. `others` says for how long others computed meanwhile.
pub(super) fn answer_pass(
    shared: &Shared,
    compute: &Compute<'_>,
    (pass, reply): (Pass, Reply),
    others: impl Fn() -> Duration,
) {
    let started = Instant::now();
    let queued = started.saturating_duration_since(pass.arrived);
    let (left, work) = (left_stash(&pass), work_of_forward(&pass));
    // Everything from the peer was checked before; what still panics is a bug of ours or of a device library,
    // and must cost this request only.
    let output = catch_unwind(AssertUnwindSafe(|| compute.run(pass, &shared.stashes))).unwrap_or_else(|_| {
        tracing::error!("a pass panicked");
        Err(Refusal::Internal { what: "the computation failed".into() })
    });
    // What others took is not this pass's, which waited meanwhile.
    let others = others();
    let (computed, queued) = (started.elapsed().saturating_sub(others), queued + others);
    shared.record(computed);
    // Where others computed as well, on several processors, nobody can tell what it took by itself.
    let alone = others * OTHERS_PART < computed;
    if let Some((rows, blocks)) = work.filter(|_| alone && output.is_ok()) {
        shared.speed.ran(rows, blocks, computed);
    }
    let unwanted = reply.send(output.map(|(output, passes)| Done { output, passes, queued, computed })).is_err();
    if let Some(stash) = left.filter(|_| unwanted) {
        // The request was given up meanwhile, and its stash forgotten before it was there.
        lock(&shared.stashes).forget(stash);
    }
}

/// Rows and blocks of a forward.
fn work_of_forward(pass: &Pass) -> Option<(usize, usize)> {
    let layout = &pass.layout;
    matches!(pass.work, Work::Forward { .. }).then(|| (layout.tokens() + layout.prefix_rows(), layout.span.len()))
}

/// What a forward leaves behind.
fn left_stash(pass: &Pass) -> Option<(u64, StashId)> {
    match pass.work {
        Work::Forward { stash: Some(stash), .. } => Some((pass.stream, stash)),
        _ => None,
    }
}

/// Computes steps of one span together and answers them. Whose they were, and how long it took but for what `others` say that was theirs.
pub(super) fn answer_steps(
    shared: &Shared,
    compute: &Compute<'_>,
    batch: Vec<(Pass, Reply)>,
    others: impl Fn() -> Duration,
) -> (Vec<SessionKey>, Duration) {
    let started = Instant::now();
    let (mut steps, mut waiting, mut blocks) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()), 0);
    for (pass, reply) in batch {
        if pass.is_unwanted(&reply) {
            continue;
        }
        let queued = started.saturating_duration_since(pass.arrived);
        let Pass { party, stream, layout, work, .. } = pass;
        let Work::Step { inputs, session, starts, order, open } = work else { continue };
        blocks = layout.span.len();
        waiting.push((reply, queued, (stream, session)));
        steps.push(Step { key: (stream, session), party, layout, inputs, starts, order, open });
    }
    let run = || steps::run(compute, &shared.sessions, &shared.prefixes, steps);
    let results = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        tracing::error!("a step panicked");
        waiting.iter().for_each(|(.., key)| lock(&shared.sessions).abandon(*key));
        Vec::new()
    });
    let others = others();
    let computed = started.elapsed().saturating_sub(others);
    shared.record(computed);
    let passes = BlockPasses { forward: blocks as u32, backward: 0 };
    let (mut results, mut answered) = (results.into_iter(), Vec::with_capacity(waiting.len()));
    for (reply, queued, key) in waiting {
        let queued = queued + others;
        let failed = || Err(Refusal::Internal { what: "the computation failed".into() });
        let done = results.next().unwrap_or_else(failed).map(|Stepped { text, prefix }| {
            let output = Output::Forward { text, prefix, stash: StashLevel::None, keys_values: None };
            Done { output, passes, queued, computed }
        });
        answered.push(key);
        if reply.send(done).is_err() {
            // The request was given up meanwhile. A client that goes on opens the session again.
            lock(&shared.sessions).end(key);
        }
    }
    (answered, computed)
}
