//! What happens on the way, for people to see.

use std::time::Duration;

use petals_protocol::Span;
use petals_swarm::PeerId;

use crate::planner::MissingBlocks;

/// Something a user may want to see while passes go on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SwarmEvent {
    /// A server failed a request; its span is routed anew.
    HopFailed {
        /// Who.
        peer: PeerId,
        /// The blocks it was to run.
        span: Span,
        /// What happened.
        reason: String,
    },
    /// Servers did not pass a micro-batch on to each other; it is repeated through the client.
    RelayFailed {
        /// Who noticed.
        peer: PeerId,
        /// The blocks it was to run.
        span: Span,
        /// What happened.
        reason: String,
    },
    /// Nobody holds some blocks; asked again after `wait`.
    BlocksMissing {
        /// Which.
        missing: MissingBlocks,
        /// Time to the next attempt.
        wait: Duration,
        /// Time until the pass gives up.
        patience_left: Duration,
    },
}
