//! What is computed and what comes of it, as it travels between streams and the thread that computes.
//!
//! Below everything else in this room: how a pass is computed does not depend on who queues it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_model::{InputGrads, OutputGrads};
use petals_protocol::{BlockPasses, PassLayout, SessionId, SessionOpen, Span, StashId, StashLevel};
use petals_swarm::Party;

use super::Reply;
use super::sessions::SessionKey;
use crate::machine::budget::Reserved;

/// Tables of a span's blocks, `[span, block_values]`. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tables(Arc<Held>);

#[derive(Debug)]
struct Held {
    values: Vec<f32>,
    /// Of tables that are kept. Requests that wait hold on to tables that were replaced, and so to their memory.
    _memory: Option<Reserved>,
}

/// Inputs of a forward in host memory; shapes follow from the layout.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) text: Vec<f32>,
    pub(crate) prefix: Option<Vec<f32>>,
    pub(crate) tables: Option<Tables>,
}

/// What a pass does.
#[derive(Debug)]
pub(crate) enum Work {
    Forward {
        inputs: Inputs,
        stash: Option<StashId>,
    },
    /// A forward of which the prefix's keys and values are wanted too.
    KeysValues {
        inputs: Inputs,
    },
    Backward {
        inputs: Option<Inputs>,
        stash: Option<StashId>,
        grads: OutputGrads,
        text_grad: bool,
    },
    Step {
        inputs: Inputs,
        session: SessionId,
        starts: Vec<u32>,
        order: Option<Vec<u32>>,
        open: Option<SessionOpen>,
    },
}

/// A session that steps, and the blocks that it steps through.
pub(super) type Comer = (SessionKey, Span);

/// A pass with everything that decides where and when it runs.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) party: Party,
    pub(crate) stream: u64,
    pub(crate) layout: PassLayout,
    pub(crate) work: Work,
    /// Whether the rows that come of it are sent in bf16.
    pub(crate) rounded: bool,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
}

impl Pass {
    /// Whose step it is.
    pub(super) fn comer(&self) -> Option<Comer> {
        match self.work {
            Work::Step { session, .. } => Some(((self.stream, session), self.layout.span)),
            _ => None,
        }
    }

    /// A client that went away or gave up is not worth the computation.
    pub(super) fn is_unwanted(&self, reply: &Reply) -> bool {
        reply.is_closed() || Instant::now() > self.deadline
    }
}

/// What came out of a pass, and how long it took.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) output: Output,
    pub(crate) passes: BlockPasses,
    pub(crate) queued: Duration,
    pub(crate) computed: Duration,
}

#[derive(Debug)]
pub(crate) enum Output {
    Forward { text: Vec<f32>, prefix: Option<Vec<f32>>, stash: StashLevel, keys_values: Option<Vec<f32>> },
    Backward(InputGrads),
}

impl Tables {
    /// Tables of one request.
    pub(crate) fn new(values: Vec<f32>) -> Self {
        Self(Arc::new(Held { values, _memory: None }))
    }

    /// Tables that are kept for later ones too, in `memory`.
    pub(crate) fn kept(values: Vec<f32>, memory: Reserved) -> Self {
        Self(Arc::new(Held { values, _memory: Some(memory) }))
    }

    /// The values.
    pub(crate) fn values(&self) -> &[f32] {
        &self.0.values
    }

    /// The values; copied if others need them too.
    pub(crate) fn into_values(self) -> Vec<f32> {
        Arc::try_unwrap(self.0).map_or_else(|shared| shared.values.clone(), |held| held.values)
    }
}
