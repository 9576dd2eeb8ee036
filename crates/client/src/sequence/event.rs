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
    /// A server was much later than usual, and another one was sooner.
    Outpaced {
        /// Who was late.
        peer: PeerId,
        /// The blocks it was to run.
        span: Span,
        /// Who answered instead.
        by: PeerId,
        /// How long it was waited for before the other one was asked.
        after: Duration,
    },
    /// Other servers got something else than this one; what it did is repeated.
    UntrueResult {
        /// Who.
        peer: PeerId,
        /// The blocks it ran.
        span: Span,
        /// What was wrong.
        reason: String,
        /// It contradicted itself or a trusted peer, and is not used any more. Else strangers outvoted it, and it is passed over for a time.
        certain: bool,
    },
    /// Servers disagree, and there is nobody to decide between them.
    Disagreement {
        /// Whose result is used.
        peer: PeerId,
        /// Who got something else.
        other: PeerId,
        /// The blocks.
        span: Span,
        /// How they differ.
        reason: String,
    },
    /// Servers have other weights than those in use, though their model has the same name. They are not used.
    OtherWeights {
        /// All of them.
        peers: Vec<PeerId>,
    },
    /// No member of the swarm was found so far.
    Alone {
        /// Where one was looked for, and what came of it.
        reason: String,
        /// Time until the start gives up.
        patience_left: Duration,
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
