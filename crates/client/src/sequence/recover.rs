//! Finding a route, and what to do about a hop that failed.

use std::time::{Duration, Instant};

use petals_protocol::{Refusal, Remedy, Span};
use petals_swarm::PeerId;

use super::error::chain;
use super::{RelayMode, RemoteSequence, SequenceError, SwarmEvent, Way};
use crate::planner::{Exclusion, Hop, MissingBlocks, Planner};
use crate::servers::hop::HopError;
use crate::servers::peers::PassSize;
use crate::servers::retry::Retry;

/// A busy server's hint is believed up to this.
const LONGEST_BUSY_WAIT: Duration = Duration::from_secs(5);
/// After so long a wait for a model without servers, the swarm is asked which ones it serves.
const WORTH_A_QUESTION: Duration = Duration::from_secs(2);
/// After so many refusals in a row a stash is left behind if another server holds the blocks.
pub(super) const BUSY_ATTEMPTS: u32 = 3;

impl RemoteSequence {
    /// Hops over `span`; waits, visibly, while blocks have no holder.
    pub(crate) async fn plan(
        &self,
        span: Span,
        pass: PassSize,
        way: Way,
        retry: &mut Retry,
    ) -> Result<Vec<Hop>, SequenceError> {
        loop {
            let mut missing = match self.view.ready().await {
                Ok(()) => {
                    self.try_out(span, pass).await;
                    match self.plan_now(span, pass, way, retry) {
                        Ok(hops) => return Ok(hops),
                        Err(missing) => missing,
                    }
                }
                // Nobody to ask is as good as nobody there, and may pass just as well.
                Err(error) if retry.is_over(Instant::now()) => return Err(error.into()),
                Err(_) => MissingBlocks::all(span),
            };
            let Some(wait) = retry.next_wait(Instant::now()) else {
                missing.note = self.view.missing_note(&missing).await;
                return Err(SequenceError::Missing { missing, waited: retry.elapsed(Instant::now()) });
            };
            // Whoever has waited a little may be waiting for what nobody will ever serve here.
            if retry.elapsed(Instant::now()) > WORTH_A_QUESTION {
                missing.note = self.view.models_note(&missing).await;
            }
            self.tell(SwarmEvent::BlocksMissing { missing, wait, patience_left: retry.left(Instant::now()) });
            tokio::time::sleep(wait).await;
            let _ = self.view.refresh(Duration::ZERO).await;
        }
    }

    fn plan_now(&self, span: Span, pass: PassSize, way: Way, retry: &mut Retry) -> Result<Vec<Hop>, MissingBlocks> {
        if let Some(purpose) = way.purpose.filter(|_| span == self.served && retry.rejected_by().is_empty()) {
            return self.next_route(purpose, pass, way.relay);
        }
        let candidates = self.candidates(pass, way.relay, retry.rejected_by(), Exclusion::Rejected);
        Ok(Planner::new(&candidates, &self.config.rules, self.blocks).fastest(span)?.hops)
    }

    /// Decides what a failed request means. `Ok` if the work should be tried again, perhaps elsewhere.
    ///
    /// Whoever fails is banned at once, except for what is nobody's fault: a server without room counts as slower, and one
    /// that rejects the request is passed over for this work alone, until another one accepts it.
    pub(crate) async fn recover(
        &self,
        pass: PassSize,
        hop: Hop,
        error: HopError,
        retry: &mut Retry,
    ) -> Result<(), SequenceError> {
        let Hop { peer, span } = hop;
        let now = Instant::now();
        let mut wait = retry.next_wait(now);
        let mut busy = None;
        match &error {
            HopError::Refused(refusal) => match refusal.remedy() {
                Remedy::Stop => {
                    // One server's word is not enough while others hold the blocks: its limits or its weights may be odd.
                    // Limits may differ, so too large for one is no lie if it is not for another.
                    retry.rejected(peer, !matches!(refusal, Refusal::TooLarge { .. }));
                    if self.planned(span, pass, retry).is_none() {
                        return Err(SequenceError::Rejected { peer, span, refusal: Box::new(refusal.clone()) });
                    }
                }
                Remedy::RetryThere { after } => {
                    let after = after.min(LONGEST_BUSY_WAIT);
                    self.view.busy(peer, after);
                    busy = Some(after);
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
            HopError::Untrue(_) => self.view.untrue(peer),
            HopError::Outvoted(_) => self.view.suspend(peer),
            // It does the rest of the work as well as others.
            HopError::OldServer { .. } => {
                retry.rejected(peer, false);
                if self.planned(span, pass, retry).is_none() {
                    return Err(SequenceError::Outdated { span, last: Box::new(error) });
                }
            }
            _ => {
                self.view.failed(peer);
            }
        }
        let Some(limit) = wait else {
            return Err(SequenceError::Exhausted { span, waited: retry.elapsed(now), last: Box::new(error) });
        };
        let planned = self.planned(span, pass, retry);
        if let Some(after) = busy {
            let elsewhere = planned.is_some_and(|hops| hops.iter().all(|hop| hop.peer != peer));
            wait = Some(if elsewhere { Duration::ZERO } else { after.min(retry.left(now)) });
        } else {
            let reason = chain(&error);
            tracing::debug!(%peer, %span, reason, "hop failed");
            self.tell(match error {
                HopError::Untrue(_) => SwarmEvent::UntrueResult { peer, span, reason, certain: true },
                HopError::Outvoted(_) => SwarmEvent::UntrueResult { peer, span, reason, certain: false },
                _ => SwarmEvent::HopFailed { peer, span, reason },
            });
            // Replacements that came after the last lookup are worth knowing, and worth waiting for if none is known.
            if planned.is_some_and(|hops| !hops.iter().any(|hop| self.is_banned(hop.peer))) {
                self.view.refresh_soon(Duration::from_secs(1));
                wait = Some(Duration::ZERO);
            } else {
                let _ = self.view.refresh(Duration::from_secs(1)).await;
            }
        }
        tokio::time::sleep(wait.unwrap_or(limit)).await;
        Ok(())
    }

    /// After work that succeeded: servers which had called it a mistake, and were alone with that, are at fault.
    pub(super) fn accepted(&self, span: Span, retry: Retry) {
        for &peer in retry.doubtful() {
            self.view.failed(peer);
            let reason = "it rejected a request that others accept".into();
            self.tell(SwarmEvent::HopFailed { peer, span, reason });
        }
    }

    /// Who would run `span` now, without those that have rejected it.
    pub(super) fn planned(&self, span: Span, pass: PassSize, retry: &Retry) -> Option<Vec<Hop>> {
        let candidates = self.candidates(pass, RelayMode::Star, retry.rejected_by(), Exclusion::Rejected);
        let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
        Some(planner.fastest(span).ok()?.hops)
    }

    pub(super) fn is_banned(&self, peer: PeerId) -> bool {
        self.view.peers().ban(peer, Instant::now()).is_some()
    }
}
