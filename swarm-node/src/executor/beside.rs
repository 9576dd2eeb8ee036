//! What is computed while a long pass is, so that nobody waits for all of it.
//!
//! Tokens, whoever's they are, and passes that are much smaller than the long one, of whoever had less of the node. Tokens and passes of few rows in turn with it: no
//! more of the time is theirs than the long pass has for itself, since what they take is that of reading weights, of which shares do not tell. Of larger ones they do.

use std::sync::Arc;
use std::time::Duration;

use petals_model::BlockStack;
use petals_protocol::Span;
use petals_swarm::Party;

use super::compute::Compute;
use super::pass::{Pass, Work};
use super::sessions::SessionKey;
use super::{Reply, State, work};

/// A pass that goes beside a long one is smaller by this factor at least.
const SMALLER: u64 = 4;
/// Part of the memory for a pass that such a one may take, on top of that of the long pass.
const MEMORY_PART: u64 = 8;
/// Rows of a step that goes beside a long pass, and of all that go together. Their memory comes on top as well, so they are few.
const MOST_ROWS_OF_ONE: usize = 16;
pub(super) const MOST_ROWS: usize = 64;
/// Rows from which the time of a pass is that of computing, which can be told in advance.
const LEAST_ROWS: usize = 32;
/// What is expected to take longer than this many seconds is long.
const LONG: f64 = 2e-3;

/// A pass, where it is answered, and the blocks to run it on.
pub(super) type Taken = (Pass, Reply, Arc<BlockStack>);

/// A long pass that is under way, as far as others have to know of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Long {
    pub(super) party: Party,
    pub(super) span: Span,
    cost: u64,
    /// Whose step it is. The session's next one has to wait.
    session: Option<SessionKey>,
}

impl Long {
    pub(super) fn new(pass: &Pass, blocks: &BlockStack) -> Self {
        let session = match pass.work {
            Work::Step { session, .. } => Some((pass.stream, session)),
            _ => None,
        };
        let cost = work::cost(pass, blocks.config().hidden_size);
        Self { party: pass.party, span: pass.layout.span, cost, session }
    }

    /// Whether it is a step of the same session.
    fn is_of(&self, pass: &Pass) -> bool {
        matches!(pass.work, Work::Step { session, .. } if self.session == Some((pass.stream, session)))
    }
}

/// Whether a pass takes so long that others should not wait for all of it, at so many rows times blocks a second.
pub(super) fn is_long(pass: &Pass, blocks: &BlockStack, rate: f64) -> bool {
    rows_of(pass) >= LEAST_ROWS && work::cost(pass, blocks.config().hidden_size) as f64 > LONG * rate
}

/// How many blocks of a pass are expected to take so long, at so many rows times blocks a second; one at least.
pub(super) fn blocks_within(time: Duration, pass: &Pass, blocks: &BlockStack, rate: f64) -> usize {
    let of_block = work::cost(pass, blocks.config().hidden_size) as f64 / pass.layout.span.len() as f64;
    // What cannot be told is a zero.
    ((time.as_secs_f64() * rate / of_block) as usize).max(1)
}

/// Whether all blocks are computed by processors.
pub(super) fn on_processors(blocks: &BlockStack) -> bool {
    blocks.places().all(|place| !place.device().has_queue())
}

/// Whether a pass takes the time of reading weights, whatever its rows.
pub(super) fn takes_turns(pass: &Pass) -> bool {
    pass.comer().is_some() || rows_of(pass) < LEAST_ROWS
}

/// Rows that enter a pass.
pub(super) fn rows_of(pass: &Pass) -> usize {
    pass.layout.tokens() + pass.layout.prefix_rows()
}

/// Whether a pass belongs to a session of which a long step is being computed.
pub(super) fn has_begun(long: Option<&Long>, pass: &Pass) -> bool {
    long.is_some_and(|long| long.is_of(pass))
}

/// Whether a step is that of tokens: it goes on with a session, by a few rows.
pub(super) fn is_tokens(pass: &Pass) -> bool {
    matches!(pass.work, Work::Step { open: None, .. }) && pass.layout.tokens() <= MOST_ROWS_OF_ONE
}

/// Takes what goes beside `long` next: what takes turns if it is its `turn`, and small passes if there is a `compute` to estimate their memory with.
pub(super) fn pop(
    state: &mut State,
    long: &Long,
    turn: bool,
    compute: Option<impl Fn(Arc<BlockStack>) -> Compute<'static>>,
) -> Option<Taken> {
    if state.queue.len() == 0 || state.stopping {
        return None;
    }
    let State { queue, stacks, long: in_background, .. } = state;
    // Beside a small pass, too, that goes beside another one.
    let has_begun = |pass: &Pass| has_begun(Some(long), pass) || has_begun(in_background.as_ref(), pass);
    let of = |pass: &Pass| stacks.iter().find(|blocks| blocks.span().covers(pass.layout.span)).cloned();
    let mut chosen = None;
    let (pass, reply) = queue.pop_beside(long.party, &mut |(pass, _), less| {
        let Some(blocks) = of(pass).filter(|_| turn || !takes_turns(pass)) else { return false };
        let fits = match pass.work {
            Work::Step { .. } => is_tokens(pass) && !has_begun(pass),
            Work::KeysValues { .. } => false,
            Work::Forward { .. } | Work::Backward { .. } => {
                let cost = work::cost(pass, blocks.config().hidden_size);
                let small = less && cost.saturating_mul(SMALLER) <= long.cost;
                small
                    && compute.as_ref().is_some_and(|compute| {
                        let compute = compute(blocks.clone());
                        compute.wanted(pass) <= compute.pass_bytes / MEMORY_PART
                    })
            }
        };
        chosen = Some(blocks).filter(|_| fits);
        fits
    })?;
    Some((pass, reply, chosen?))
}

#[cfg(test)]
mod tests;
