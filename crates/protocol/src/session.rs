//! Inference sessions: sequences whose keys and values stay on the server between the steps.

use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use crate::layout::PassLayout;
use crate::pass::ForwardRequest;

/// See [`crate::Request::Step`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRequest {
    /// Which session.
    pub session: SessionId,
    /// The new rows, as in a forward: an example of its layout is a sequence of the session, and may have no row. A prefix and tables only with
    /// the step that opens the session; no stash.
    pub forward: ForwardRequest,
    /// For each sequence, how many of its positions behind the prefix are kept. What is behind them is forgotten, so a step that is
    /// repeated is harmless and another continuation may be tried.
    pub starts: Vec<u32>,
    /// Sequence `i` continues what sequence `order[i]` was before; `None` leaves them as they are. Fewer or more than before are
    /// allowed, at most [`SessionOpen::max_sequences`].
    pub order: Option<Vec<u32>>,
    /// Opens the session, in the place of one that has its name.
    pub open: Option<SessionOpen>,
}

/// What a session may grow to. The memory for it is taken when it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpen {
    /// Sequences at a time.
    pub max_sequences: u32,
    /// Positions of a sequence, prefix included.
    pub max_positions: u32,
}

/// Why a step makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// A number of starts or of an order's entries that is not that of the layout's examples.
    #[error("the step has {examples} sequences, but {got} {what}")]
    Count {
        /// Sequences of the layout.
        examples: usize,
        /// Which list.
        what: &'static str,
        /// Its length.
        got: usize,
    },
    /// A new session whose sequences have a past.
    #[error("a step that opens a session starts at position 0 of every sequence and without an order")]
    OpenWithPast,
    /// More than the session was opened for.
    #[error("the step exceeds what its session is opened for")]
    TooLarge,
    /// A prefix or tables that do not come first.
    #[error("only the step that opens a session has a prefix and tables")]
    LatePrefix,
    /// Inference has no backward.
    #[error("a step leaves no stash")]
    Stash,
}

impl StepRequest {
    /// Checks what can be checked without knowing the session; the layout by itself must have been.
    ///
    /// # Errors
    /// The first [`StepError`] found.
    pub fn validate(&self) -> Result<(), StepError> {
        let PassLayout { lengths, prefix_len, .. } = &self.forward.layout;
        let has_tables = self.forward.layout.has_tables();
        let count = |what, got| {
            if got == lengths.len() { Ok(()) } else { Err(StepError::Count { examples: lengths.len(), what, got }) }
        };
        count("starts", self.starts.len())?;
        if let Some(order) = &self.order {
            count("entries of the order", order.len())?;
        }
        if self.forward.stash.is_some() {
            return Err(StepError::Stash);
        }
        match self.open {
            None if *prefix_len > 0 || has_tables => Err(StepError::LatePrefix),
            None => Ok(()),
            Some(_) if self.order.is_some() || self.starts.iter().any(|&start| start > 0) => {
                Err(StepError::OpenWithPast)
            }
            Some(open) => {
                let longest = lengths.iter().copied().max().unwrap_or_default();
                let fits = lengths.len() as u64 <= u64::from(open.max_sequences)
                    && u64::from(longest) + u64::from(*prefix_len) <= u64::from(open.max_positions);
                if fits { Ok(()) } else { Err(StepError::TooLarge) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Injection, RowSource, RowTarget, Span, StashId, TableSource, WireDtype};

    fn step() -> StepRequest {
        let layout = PassLayout {
            span: Span::new(0, 2).unwrap(),
            lengths: vec![3, 1],
            prefix_len: 2,
            injection: Injection::Replace,
            weights: Default::default(),
            read_rows: None,
        };
        let forward = ForwardRequest {
            layout,
            tables: TableSource::Inline,
            stash: None,
            input: RowSource::Inline,
            output: RowTarget::Reply,
            reply_dtype: WireDtype::F32,
            deadline_ms: 1000,
        };
        let open = Some(SessionOpen { max_sequences: 2, max_positions: 5 });
        StepRequest { session: SessionId(1), forward, starts: vec![0, 0], order: None, open }
    }

    #[test]
    fn refuses_nonsense() {
        let with = |change: fn(&mut StepRequest)| {
            let mut step = step();
            change(&mut step);
            step.validate()
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert!(matches!(with(|s| s.starts.clear()), Err(StepError::Count { examples: 2, got: 0, .. })));
        assert!(matches!(with(|s| s.order = Some(vec![0])), Err(StepError::Count { .. })));
        assert_eq!(with(|s| s.starts[1] = 1), Err(StepError::OpenWithPast));
        assert_eq!(with(|s| s.order = Some(vec![0, 1])), Err(StepError::OpenWithPast));
        assert_eq!(with(|s| s.open = None), Err(StepError::LatePrefix));
        assert_eq!(with(|s| s.forward.stash = Some(StashId(1))), Err(StepError::Stash));
        for open in [(1, 5), (2, 4)] {
            let mut step = step();
            step.open = Some(SessionOpen { max_sequences: open.0, max_positions: open.1 });
            assert_eq!(step.validate(), Err(StepError::TooLarge));
        }
        let later = |s: &mut StepRequest| {
            (s.open, s.forward.layout.prefix_len, s.forward.layout.injection) = (None, 0, Injection::None);
            (s.starts, s.order) = (vec![7, 0], Some(vec![1, 1]));
        };
        assert_eq!(with(later), Ok(()));
    }
}
