//! What the executor tells of itself: how busy it is, and what it did.

use std::sync::Arc;

use petals_model::BlockStack;
use petals_protocol::{InUse, Refusal};
use petals_swarm::PeerId;

use super::ExecutorHandle;
use super::work::{Refused, Totals, WorkCount};
use crate::lock::lock;

impl ExecutorHandle {
    /// What was taken on since the last time that this was asked.
    pub(crate) fn take_work(&self) -> WorkCount {
        self.0.work.take()
    }

    /// Work since the start.
    pub(crate) fn totals(&self) -> Totals {
        self.0.work.totals().clone()
    }

    /// Notes that a request of `peer` was not served.
    pub(crate) fn note_refusal(&self, peer: PeerId, refusal: &Refusal) {
        self.0.work.refused(peer, refusal);
    }

    /// The latest requests that were not served, the last one first.
    pub(crate) fn refusals(&self) -> Vec<Refused> {
        self.0.work.refusals()
    }

    /// Memory of sessions and of stashes, and how much of it is taken.
    pub(crate) fn in_use(&self) -> (InUse, InUse) {
        let cache = {
            let sessions = lock(&self.0.sessions);
            InUse { used: sessions.bytes(), of: sessions.budget() }
        };
        let stashes = lock(&self.0.stashes);
        (cache, InUse { used: stashes.bytes(), of: stashes.budget() })
    }

    /// Sessions that are open.
    pub(crate) fn sessions(&self) -> usize {
        lock(&self.0.sessions).len()
    }

    /// Passes waiting or running.
    pub(crate) fn depth(&self) -> usize {
        let state = lock(&self.0.state);
        state.queue.len() + usize::from(state.running.is_some()) + usize::from(state.long.is_some())
    }

    /// Bytes of stash held.
    pub(crate) fn stash_bytes(&self) -> u64 {
        lock(&self.0.stashes).bytes()
    }

    /// Tokens of sessions over all blocks for which there is room, and what sessions have taken, in bytes.
    pub(crate) fn session_room(&self) -> (u64, u64) {
        let of_page =
            |blocks: Arc<BlockStack>| self.0.config.rooms.kept(&blocks, |place| place.kv_page_bytes(blocks.span()));
        let page = self.blocks().map_or(0, of_page);
        let sessions = lock(&self.0.sessions);
        (sessions.tokens_left(page), sessions.bytes())
    }
}
