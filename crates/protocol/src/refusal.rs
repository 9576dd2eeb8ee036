//! Typed answers of a server that does not do what was asked.

use serde::{Deserialize, Serialize};

use crate::ids::{ModelId, Span};
use crate::printable::printable;

/// Why a server refused a request. Ordinary traffic, not a fault of the connection: the stream stays usable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue or a memory budget is full.
    #[error("the server is busy, retry in {retry_after_ms} ms")]
    Busy {
        /// When asking again may succeed.
        retry_after_ms: u32,
    },
    /// The server is about to stop and takes no new work.
    #[error("the server is draining")]
    Draining,
    /// The server hosts another model.
    #[error("the server hosts the model {served}")]
    WrongModel {
        /// What it hosts.
        served: ModelId,
    },
    /// The blocks asked for are not all hosted here.
    #[error("the server hosts blocks {served}, not all of {asked}")]
    WrongSpan {
        /// What was asked for.
        asked: Span,
        /// What is hosted.
        served: Span,
    },
    /// The stash is gone: evicted, expired, already used, or left on an earlier connection. Send the inputs again.
    #[error("the stash of this pass is gone")]
    StashGone,
    /// The request exceeds a limit that [`crate::Welcome`] announced.
    #[error("{} is {got}, above the server's limit of {limit}", shown(what))]
    TooLarge {
        /// Which quantity.
        what: String,
        /// How much was asked.
        got: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// A tensor has the wrong shape or dtype, or is missing.
    #[error("bad shape: {}", shown(what))]
    BadShape {
        /// What was wrong.
        what: String,
    },
    /// A value is NaN or infinite.
    #[error("not finite: {}", shown(what))]
    NotFinite {
        /// Which tensor, and where.
        what: String,
    },
    /// The request makes no sense or cannot be read.
    #[error("bad request: {}", shown(what))]
    BadRequest {
        /// What was wrong.
        what: String,
    },
    /// Something failed in the server through no fault of the request.
    #[error("internal error of the server: {}", shown(what))]
    Internal {
        /// A short description without details of the host.
        what: String,
    },
    /// The prompts named are not kept here: never were, were replaced, or are another span's. Send them with the request.
    #[error("the prompts of this pass are gone")]
    TablesGone,
    /// The pass was computed, but the server it was to be passed on to did not take its output.
    #[error("the output cannot be passed on: {}", shown(what))]
    NextUnreachable {
        /// What happened.
        what: String,
    },
    /// What another server sent for this request cannot be used.
    #[error("the rows passed on to this request cannot be used: {}", shown(what))]
    BadRelay {
        /// What is wrong with it.
        what: String,
    },
    /// Said to a server that passes rows on: no request waits for them, nor came for them in time.
    #[error("no request waits for these rows")]
    UnknownRelay,
    /// The session is gone: never opened on this stream, ended, or idle for too long. Open it again, with all rows.
    #[error("the session is gone")]
    SessionGone,
}

/// Longest words of a refusal that are shown, in characters.
const MAX_WORDS: usize = 300;

/// A server's own words, as far as a terminal or a log may show them.
fn shown(what: &str) -> String {
    printable(what, MAX_WORDS)
}

/// What a client does about a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Ask the same server again after the delay.
    RetryThere {
        /// How long to wait first.
        after: std::time::Duration,
    },
    /// Send the forward inputs again, to the same server.
    Replay,
    /// Use another server.
    GoElsewhere,
    /// Let the rows travel through the client.
    UseStar,
    /// The client's own mistake: every server would answer the same.
    Stop,
}

impl Refusal {
    /// What the client does next.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Busy { retry_after_ms } => {
                Remedy::RetryThere { after: std::time::Duration::from_millis(u64::from(*retry_after_ms)) }
            }
            Self::StashGone | Self::TablesGone | Self::SessionGone => Remedy::Replay,
            Self::Draining | Self::WrongModel { .. } | Self::WrongSpan { .. } | Self::Internal { .. } => {
                Remedy::GoElsewhere
            }
            Self::NextUnreachable { .. } | Self::BadRelay { .. } | Self::UnknownRelay => Remedy::UseStar,
            Self::TooLarge { .. } | Self::BadShape { .. } | Self::NotFinite { .. } | Self::BadRequest { .. } => {
                Remedy::Stop
            }
        }
    }

    /// One word for figures.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::Draining => "draining",
            Self::WrongModel { .. } => "wrong_model",
            Self::WrongSpan { .. } => "wrong_span",
            Self::StashGone => "stash_gone",
            Self::TooLarge { .. } => "too_large",
            Self::BadShape { .. } => "bad_shape",
            Self::NotFinite { .. } => "not_finite",
            Self::BadRequest { .. } => "bad_request",
            Self::Internal { .. } => "internal",
            Self::TablesGone => "tables_gone",
            Self::NextUnreachable { .. } => "next_unreachable",
            Self::BadRelay { .. } => "bad_relay",
            Self::UnknownRelay => "unknown_relay",
            Self::SessionGone => "session_gone",
        }
    }

    /// Whether the same work may succeed, here or elsewhere, without the client changing it.
    pub fn is_retryable(&self) -> bool {
        self.remedy() != Remedy::Stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clients_own_mistakes_stop_it() {
        assert!(Refusal::Busy { retry_after_ms: 5 }.is_retryable());
        assert!(Refusal::StashGone.is_retryable() && Refusal::TablesGone.is_retryable());
        assert!(Refusal::Internal { what: String::new() }.is_retryable());
        assert!(!Refusal::BadShape { what: String::new() }.is_retryable());
        assert!(!Refusal::TooLarge { what: String::new(), got: 2, limit: 1 }.is_retryable());
    }

    #[test]
    fn words_of_strangers_do_nothing_to_a_terminal() {
        let what = format!("\u{1b}[2J\u{202e}gone{}", "x".repeat(1 << 20));
        for refusal in [
            Refusal::BadRequest { what: what.clone() },
            Refusal::Internal { what: what.clone() },
            Refusal::NextUnreachable { what: what.clone() },
            Refusal::TooLarge { what, got: 2, limit: 1 },
        ] {
            let shown = refusal.to_string();
            assert!(shown.contains("[2Jgone") && shown.len() < 500, "{} bytes", shown.len());
            assert!(shown.chars().all(crate::is_printable), "{shown:?}");
        }
    }
}
