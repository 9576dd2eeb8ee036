//! What is kept of a forward for its backward.

use std::sync::Arc;
use std::time::Duration;

use petals_model::Stash;
use petals_protocol::StashId;

use super::PassInput;
use crate::planner::Hop;
use crate::servers::exchange::Flow;
use crate::servers::hop::HopConnection;
use crate::servers::peers::Measurement;

/// What a backward needs of its forward. Dropping it lets the servers drop their stashes.
#[derive(Debug)]
pub struct Trace {
    pub(super) input: Arc<PassInput>,
    /// Of the local blocks.
    pub(super) local: Option<Stash>,
    pub(super) hops: Vec<HopRecord>,
}

impl Trace {
    /// The hops that computed the forward.
    pub fn hops(&self) -> impl Iterator<Item = Hop> {
        self.hops.iter().map(|record| record.hop)
    }

    /// How long each hop's forward took, in their order.
    pub fn timings(&self) -> impl Iterator<Item = HopTiming> {
        self.hops.iter().map(|record| record.timing)
    }
}

/// One hop of a forward.
#[derive(Debug)]
pub(super) struct HopRecord {
    pub(super) hop: Hop,
    /// What entered it; unknown if it came from another server.
    pub(super) flow: Option<Flow>,
    pub(super) stash: Option<Stashed>,
    pub(super) timing: HopTiming,
}

impl HopRecord {
    /// Whether the server may still have what the backward needs.
    pub(super) fn has_stash(&self) -> bool {
        self.stash.as_ref().is_some_and(|stash| stash.connection.is_open())
    }
}

/// Where the time of one hop went. Zero for a hop whose forward was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HopTiming {
    /// From sending the request to having its answer. Of a hop in a chain: what the server says of its own part.
    pub elapsed: Duration,
    /// What the server says it computed.
    pub computed: Duration,
    /// How long the server says the request waited for others.
    pub queued: Duration,
}

impl HopTiming {
    /// Adds what another request of the hop took.
    pub(crate) fn add(&mut self, other: Self) {
        self.elapsed += other.elapsed;
        self.computed += other.computed;
        self.queued += other.queued;
    }
}

impl From<Measurement> for HopTiming {
    fn from(measured: Measurement) -> Self {
        let Measurement { elapsed, computed, queued, .. } = measured;
        Self { elapsed, computed, queued }
    }
}

/// A stash left on a server, dropped there unless it is used.
#[derive(Debug)]
pub(super) struct Stashed {
    pub(super) id: StashId,
    pub(super) connection: Arc<HopConnection>,
    pub(super) used: bool,
}

impl Drop for Stashed {
    fn drop(&mut self) {
        if !self.used {
            self.connection.forget(self.id);
        }
    }
}
