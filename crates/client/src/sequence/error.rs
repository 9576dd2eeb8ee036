//! Why a pass fails for good.

use std::time::Duration;

use petals_protocol::{Refusal, Span};
use petals_swarm::{LookupError, PeerId};

use crate::planner::MissingBlocks;
use crate::servers::hop::HopError;
use crate::servers::local::LocalError;

/// Characters of a failure's description.
const LONGEST_REASON: usize = 300;

/// Why a pass failed for good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SequenceError {
    /// No route for the whole time that a pass is retried.
    #[error("{missing} (waited {waited:.0?})")]
    Missing {
        /// The blocks.
        missing: MissingBlocks,
        /// For how long.
        waited: Duration,
    },
    /// The request itself is wrong; every server would answer the same.
    #[error("server {peer} rejects the request for blocks {span}")]
    Rejected {
        /// Who said so.
        peer: PeerId,
        /// Which blocks were asked for.
        span: Span,
        /// Its reason.
        #[source]
        refusal: Box<Refusal>,
    },
    /// Servers were there, but none gave an answer for the whole time that a pass is retried.
    #[error("no server answered for blocks {span} (tried for {waited:.0?})")]
    Exhausted {
        /// The blocks.
        span: Span,
        /// For how long.
        waited: Duration,
        /// The last failure.
        #[source]
        last: Box<HopError>,
    },
    /// Servers are there, and all of them are older than what is asked of them.
    #[error("no server that holds blocks {span} knows what is asked of it")]
    Outdated {
        /// The blocks.
        span: Span,
        /// What it is, and what the last of them speaks.
        #[source]
        last: Box<HopError>,
    },
    /// The blocks that this client runs itself failed.
    #[error("the blocks on this machine (--local-blocks) failed")]
    Local(#[from] LocalError),
    /// The directory cannot be asked.
    #[error("cannot look up servers")]
    Lookup(#[from] LookupError),
}

/// An error with its causes on one line. Parts of it may be the words of strangers: no control characters, no novels.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect()
}
