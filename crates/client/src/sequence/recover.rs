//! Finding a route, and what to do about a hop that failed.

use std::time::{Duration, Instant};

use petals_protocol::{Refusal, Remedy, Span};

use super::error::chain;
use super::{PassInput, RemoteSequence, SequenceError, SwarmEvent};
use crate::hop::HopError;
use crate::planner::{Hop, MissingBlocks, Route, plan};
use crate::retry::Retry;

/// A busy server's hint is believed up to this.
const LONGEST_BUSY_WAIT: Duration = Duration::from_secs(5);
/// After so many refusals in a row a busy server is passed over if there is another.
const BUSY_ATTEMPTS: u32 = 3;

impl RemoteSequence {
    /// A route over `span`; waits, visibly, while blocks have no holder.
    pub(super) async fn plan(&self, span: Span, rows: usize, retry: &mut Retry) -> Result<Route, SequenceError> {
        loop {
            let missing = match self.view.candidates(rows).await {
                Ok(candidates) => match plan(span, &candidates) {
                    Ok(route) => return Ok(route),
                    Err(missing) => missing,
                },
                // Nobody to ask is as good as nobody there, and may pass just as well.
                Err(error) if retry.is_over(Instant::now()) => return Err(error.into()),
                Err(_) => MissingBlocks { spans: vec![span] },
            };
            let Some(wait) = retry.next_wait(Instant::now()) else {
                return Err(SequenceError::Missing { missing, waited: retry.elapsed(Instant::now()) });
            };
            self.tell(SwarmEvent::BlocksMissing { missing, wait, patience_left: retry.left(Instant::now()) });
            tokio::time::sleep(wait).await;
            let _ = self.view.refresh(Duration::ZERO).await;
        }
    }

    /// Decides what a failed request means. `Ok` if the work should be tried again.
    pub(super) async fn recover(
        &self,
        input: &PassInput,
        hop: Hop,
        error: HopError,
        retry: &mut Retry,
    ) -> Result<(), SequenceError> {
        let Hop { peer, span } = hop;
        let now = Instant::now();
        let mut wait = retry.next_wait(now);
        let busy = matches!(error, HopError::Refused(Refusal::Busy { .. }));
        match &error {
            HopError::Refused(refusal) => match refusal.remedy() {
                Remedy::Stop => {
                    self.view.failed(peer);
                    // One server's word is not enough while others hold the blocks: its limits or its weights may be odd.
                    retry.rejected_by().insert(peer);
                    if !self.has_others(span, input.rows(), retry).await {
                        return Err(SequenceError::Rejected { peer, span, refusal: Box::new(refusal.clone()) });
                    }
                }
                Remedy::RetryThere { after } => {
                    wait = wait.map(|_| after.min(LONGEST_BUSY_WAIT).min(retry.left(now)));
                    if retry.attempts() >= BUSY_ATTEMPTS {
                        self.view.failed(peer);
                    }
                }
                // A stash was lost that nobody named, or rows that were not to be passed on.
                Remedy::Replay | Remedy::UseStar => {
                    self.view.failed(peer);
                }
                Remedy::GoElsewhere => {
                    self.view.failed(peer);
                    if !matches!(refusal, Refusal::Internal { .. }) {
                        self.view.forget(peer);
                    }
                }
            },
            _ => {
                self.view.failed(peer);
            }
        }
        let Some(wait) = wait else {
            return Err(SequenceError::Exhausted { span, waited: retry.elapsed(now), last: Box::new(error) });
        };
        if !busy {
            let reason = chain(&error);
            tracing::debug!(%peer, %span, reason, "hop failed");
            self.tell(SwarmEvent::HopFailed { peer, span, reason });
            // Replacements that came after the last lookup are worth knowing now.
            let _ = self.view.refresh(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Whether servers that have not rejected the request hold all of `span`.
    async fn has_others(&self, span: Span, rows: usize, retry: &mut Retry) -> bool {
        let mut candidates = self.view.candidates(rows).await.unwrap_or_default();
        candidates.retain(|candidate| !retry.rejected_by().contains(&candidate.peer));
        plan(span, &candidates).is_ok()
    }
}
