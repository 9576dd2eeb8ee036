//! Moments in which nothing new is computed for others: what a node asks others then they cannot have it answer for them.

use std::sync::Arc;

use petals_protocol::Refusal;

use super::{ExecutorHandle, Shared, State};
use crate::lock::lock;

/// How soon somebody asks again who was refused in such a moment.
const RETRY_MS: u32 = 100;

/// See [`ExecutorHandle::compute_for_nobody`].
#[derive(Debug)]
pub(crate) struct ForNobody(Arc<Shared>);

impl Drop for ForNobody {
    fn drop(&mut self) {
        lock(&self.0.state).for_nobody -= 1;
    }
}

impl ExecutorHandle {
    /// Nothing new is computed until what this gives is dropped; what was asked before goes on.
    pub(crate) fn compute_for_nobody(&self) -> ForNobody {
        lock(&self.0.state).for_nobody += 1;
        ForNobody(self.0.clone())
    }
}

pub(super) fn refuse_if_alone(state: &State) -> Result<(), Refusal> {
    if state.for_nobody > 0 { Err(Refusal::Busy { retry_after_ms: RETRY_MS }) } else { Ok(()) }
}
