//! What a node did, counted for its operator.

use std::collections::HashSet;
use std::sync::Mutex;

use petals_swarm::PeerId;

use super::pass::{Pass, Work};
use crate::lock::lock;

/// Peers that are told apart in one period.
const MOST_PEERS: usize = 4096;

/// Work since it was last asked for.
#[derive(Debug, Default)]
pub(super) struct WorkDone(Mutex<(WorkCount, HashSet<PeerId>)>);

/// Work of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkCount {
    /// Requests that were taken on.
    pub requests: u64,
    /// Tokens that they brought to this node's blocks, on their way forward.
    pub tokens: u64,
    /// Peers that they came from.
    pub clients: usize,
}

/// What a pass adds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    peer: PeerId,
    tokens: u64,
}

impl Share {
    pub(super) fn of(pass: &Pass) -> Self {
        let forward = !matches!(pass.work, Work::Backward { .. });
        Self { peer: pass.peer, tokens: if forward { pass.layout.tokens() as u64 } else { 0 } }
    }
}

impl WorkDone {
    pub(super) fn add(&self, share: Share) {
        let mut done = lock(&self.0);
        let (count, peers) = &mut *done;
        count.requests += 1;
        count.tokens += share.tokens;
        if peers.len() < MOST_PEERS {
            peers.insert(share.peer);
        }
    }

    /// The work since the last time.
    pub(super) fn take(&self) -> WorkCount {
        let (count, peers) = std::mem::take(&mut *lock(&self.0));
        WorkCount { clients: peers.len(), ..count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_period_counts_for_itself() {
        let done = WorkDone::default();
        let (one, two) = (PeerId::random(), PeerId::random());
        for (peer, tokens) in [(one, 5), (two, 1), (one, 0)] {
            done.add(Share { peer, tokens });
        }
        assert_eq!(done.take(), WorkCount { requests: 3, tokens: 6, clients: 2 });
        assert_eq!(done.take(), WorkCount::default());
    }
}
