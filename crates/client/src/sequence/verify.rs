//! A sample of results is computed again by other servers.
//!
//! Whoever can tell that it is checked behaves. So with verification on, every hop goes through this client (a chain's
//! inputs would have to be asked for again), and a check looks to its servers like any other request, stash included. Who is asked is
//! drawn at random, from other networks than those whose word is in question: whoever could choose would have two peers for it. If two results
//! do not agree (`verify/compare.rs`), a third server decides. The word of a trusted peer is final; strangers may be many peers of one hand, so
//! whoever they outvote is suspended and not excluded, and the last holder of a block is used all the same. Where there is no third one,
//! each of the two is asked again, and one that contradicts itself is found out. If both stand by their word the client says so and goes on with the first
//! one, as it cannot know better.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Instant;

use petals_protocol::{Refusal, Span};
use petals_swarm::PeerId;
use rand::TryRngCore;
use rand::rngs::OsRng;

use super::trace::HopRecord;
use super::{PassInput, RelayMode, RemoteSequence, SwarmEvent};
use crate::lock::lock;
use crate::planner::{Candidate, Exclusion, Hop, Planner};
use crate::servers::exchange::Flow;
use crate::servers::hop::HopError;

mod compare;

/// Attempts at a second opinion; servers may fail meanwhile.
const ATTEMPTS: usize = 3;

/// What verification has found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Verification {
    /// Results that another server confirmed.
    pub confirmed: u64,
    /// Results that nobody else could be asked about.
    pub unchecked: u64,
    /// Results on which servers disagreed.
    pub disputed: u64,
    /// Servers found to give wrong results.
    pub untrue: u64,
}

/// Counts of what was found.
#[derive(Debug, Default)]
pub(super) struct Verifier(Mutex<Verification>);

/// What a span gave: hidden states and perhaps keys and values, or gradients of what entered it and of its tables.
#[derive(Debug, Clone)]
pub(super) struct SpanResult {
    pub(super) flow: Flow,
    /// What belongs to the blocks: gradients of their tables, or keys and values of the prefix.
    pub(super) tables: Option<Vec<f32>>,
}

/// What is wanted of a span.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// What leaves it.
    Output,
    /// That, and the keys and values of the prefix in each block, of which each row has so many.
    KeysValues(usize),
    /// The gradients of what enters it and of its tables, given that of what leaves it.
    Gradients(&'a Flow),
}

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) input: &'a PassInput,
    pub(super) span: Span,
    /// What enters the span.
    pub(super) flow: &'a Flow,
    pub(super) wanted: Wanted<'a>,
    /// Whether servers are asked to keep what a backward needs, as they were for the result.
    pub(super) stash: bool,
}

/// A result and who gave it.
struct Opinion {
    peers: Vec<PeerId>,
    result: SpanResult,
}

impl RemoteSequence {
    /// What verification has found so far.
    pub fn verification(&self) -> Verification {
        *lock(&self.verifier.0)
    }

    /// Whether `peer` is excluded because its results are wrong.
    pub(super) fn is_untrue(&self, peer: PeerId) -> bool {
        self.view.peers().is_untrue(peer)
    }

    /// Whether results of `peer` were found to be wrong, by whomever, since some time.
    pub(crate) fn found_wrong_since(&self, peer: PeerId, since: Instant) -> bool {
        self.view.peers().found_wrong_since(peer, since)
    }

    /// Whether these are peers whose word is final.
    fn judges(&self, peers: &[PeerId]) -> bool {
        peers.iter().all(|peer| self.config.rules.trusted.contains(peer))
    }

    /// Nobody but this machine can know what is. A system without random numbers has everything checked.
    fn is_sampled(&self) -> bool {
        self.config.verify > 0.0 && draw() < self.config.verify
    }

    /// Has a sample of results checked. An error if `peer` is the one that is wrong.
    pub(super) async fn check(&self, peer: PeerId, asked: Question<'_>, result: &SpanResult) -> Result<(), HopError> {
        if !self.is_sampled() {
            return Ok(());
        }
        let count = |change: fn(&mut Verification)| change(&mut lock(&self.verifier.0));
        let Some(second) = self.opinion(asked, &[peer]).await else {
            count(|found| found.unchecked += 1);
            return Ok(());
        };
        let Some(difference) = self.difference(&[&[peer], second.peers.as_slice()], asked, result, &second.result)
        else {
            count(|found| found.confirmed += 1);
            return Ok(());
        };
        count(|found| found.disputed += 1);
        let without: Vec<PeerId> = second.peers.iter().copied().chain([peer]).collect();
        let agree = |peers: &[&[PeerId]], one: &SpanResult, other: &SpanResult| {
            self.difference(peers, asked, one, other).is_none()
        };
        match (self.judges(&[peer]), self.judges(&second.peers)) {
            (false, true) => {
                count(|found| found.untrue += 1);
                return Err(HopError::Untrue(difference));
            }
            (true, false) => {
                self.accuse(&second, asked.span, &difference, true);
                return Ok(());
            }
            _ => {}
        }
        if let Some(third) = self.opinion(asked, &without).await {
            let certain = self.judges(&third.peers);
            if agree(&[second.peers.as_slice(), third.peers.as_slice()], &second.result, &third.result) {
                count(|found| found.untrue += 1);
                return Err(if certain { HopError::Untrue(difference) } else { HopError::Outvoted(difference) });
            }
            if agree(&[&[peer], third.peers.as_slice()], result, &third.result) {
                self.accuse(&second, asked.span, &difference, certain);
                return Ok(());
            }
        }
        // Nobody decides between them, but one may contradict itself.
        let again = self.ask_again(asked, &[peer]).await;
        if again.is_some_and(|again| !agree(&[&[peer]], result, &again.result)) {
            count(|found| found.untrue += 1);
            return Err(HopError::Untrue(format!("not the same when asked twice; {difference}")));
        }
        let again = self.ask_again(asked, &second.peers).await;
        if again.is_some_and(|again| !agree(&[second.peers.as_slice()], &second.result, &again.result)) {
            self.accuse(&second, asked.span, &format!("not the same when asked twice; {difference}"), true);
            return Ok(());
        }
        let other = second.peers.first().copied().unwrap_or(peer);
        self.tell(SwarmEvent::Disagreement { peer, other, span: asked.span, reason: difference });
        Ok(())
    }

    /// The second opinion was wrong. If several servers gave it together nobody knows which of them.
    fn accuse(&self, opinion: &Opinion, span: Span, reason: &str, certain: bool) {
        let [peer] = opinion.peers.as_slice() else {
            for peer in &opinion.peers {
                self.view.failed(*peer);
            }
            return;
        };
        lock(&self.verifier.0).untrue += 1;
        match certain {
            true => self.view.untrue(*peer),
            false => self.view.suspend(*peer),
        }
        self.tell(SwarmEvent::UntrueResult { peer: *peer, span, reason: reason.to_owned(), certain });
    }

    /// The answer of servers other than those in `without`; none if there are no others.
    async fn opinion(&self, asked: Question<'_>, without: &[PeerId]) -> Option<Opinion> {
        for _ in 0..ATTEMPTS {
            let hops = self.arbiters(asked, without)?;
            match self.run_over(asked, &hops).await {
                Ok(result) => return Some(Opinion { peers: hops.iter().map(|hop| hop.peer).collect(), result }),
                Err((peer, HopError::Refused(_))) => {
                    tracing::debug!(%peer, "no second opinion from a server that refuses");
                    self.view.busy(peer, std::time::Duration::from_secs(1));
                }
                Err((peer, error)) => {
                    tracing::debug!(%peer, %error, "no second opinion from a server that fails");
                    self.view.failed(peer);
                }
            }
        }
        None
    }

    /// Who is to be asked beside those in `without`: trusted peers if they hold the blocks, else whoever is drawn, of other networks if possible.
    fn arbiters(&self, asked: Question<'_>, without: &[PeerId]) -> Option<Vec<Hop>> {
        let excluded: HashSet<PeerId> = without.iter().copied().collect();
        let mut all = self.candidates(self.pass_of(asked.input), RelayMode::Star, &excluded, Exclusion::Without);
        all.retain(|candidate| !candidate.banned && candidate.excluded.is_none());
        for candidate in &mut all {
            // As few servers as hold the blocks together, and of such any, however fast they say that they are.
            (candidate.latency_seconds, candidate.transfer_seconds) = (1.0 + draw(), 0.0);
            (candidate.block_seconds, candidate.queue_seconds) = (0.0, 0.0);
        }
        let networks: HashSet<IpAddr> = without.iter().filter_map(|peer| self.view.network(*peer)).collect();
        let elsewhere = |peer: PeerId| self.view.network(peer).is_none_or(|network| !networks.contains(&network));
        let trusted = |candidate: &Candidate| self.judges(&[candidate.peer]);
        let wanted: [&dyn Fn(&Candidate) -> bool; 3] = [&trusted, &|candidate| elsewhere(candidate.peer), &|_| true];
        wanted.into_iter().find_map(|wanted| {
            let candidates: Vec<Candidate> = all.iter().filter(|candidate| wanted(candidate)).cloned().collect();
            let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
            planner.fastest(asked.span).ok().map(|route| route.hops)
        })
    }

    /// The same question, to the same servers.
    async fn ask_again(&self, asked: Question<'_>, peers: &[PeerId]) -> Option<Opinion> {
        let [peer] = peers else { return None };
        let result = self.run_over(asked, &[Hop { peer: *peer, span: asked.span }]).await.ok()?;
        Some(Opinion { peers: vec![*peer], result })
    }

    /// Runs a question over hops, one by one; who failed and how if one did.
    async fn run_over(&self, asked: Question<'_>, hops: &[Hop]) -> Result<SpanResult, (PeerId, HopError)> {
        let Question { input, wanted, .. } = asked;
        let (mut flow, mut records, mut parts) = (asked.flow.clone(), Vec::with_capacity(hops.len()), Vec::new());
        for &hop in hops {
            let failed = |error| (hop.peer, error);
            let (left, stash, timing) = if let Wanted::KeysValues(of_row) = wanted {
                let (result, timing) = self.keys_values_of_hop(input, hop, &flow, of_row).await.map_err(failed)?;
                parts.extend(result.tables);
                (result.flow, None, timing)
            } else {
                // A backward's last output is of no use here, but who is only asked for gradients would know why.
                self.forward_hop(input, hop, &flow, asked.stash).await.map_err(failed)?
            };
            let entered = std::mem::replace(&mut flow, left);
            records.push(HopRecord { hop, flow: Some(entered), stash, timing });
        }
        let Wanted::Gradients(grad) = wanted else {
            return Ok(SpanResult { flow, tables: (!parts.is_empty()).then(|| parts.concat()) });
        };
        let mut grad = grad.clone();
        for HopRecord { hop, flow, stash, .. } in records.iter_mut().rev() {
            let failed = |error| (hop.peer, error);
            let named = stash.as_ref().map(|stash| (stash.id, stash.connection.clone()));
            let done = match self.ask_backward(input, *hop, flow.as_ref(), named, &grad).await {
                Err(HopError::Refused(Refusal::StashGone)) if stash.is_some() => {
                    self.ask_backward(input, *hop, flow.as_ref(), None, &grad).await
                }
                done => done,
            };
            if let Some(stash) = stash {
                stash.used = true;
            }
            let done = done.map_err(failed)?;
            grad = done.grad.ok_or_else(|| failed(HopError::BadReply("no gradient".into())))?;
            parts.extend(done.tables);
        }
        let tables = (!parts.is_empty()).then(|| parts.into_iter().rev().flatten().collect());
        Ok(SpanResult { flow: grad, tables })
    }
}

/// A number of 0 to 1 that nobody but this machine knows. A system without random numbers always gives 0.
fn draw() -> f64 {
    OsRng.try_next_u64().map_or(0.0, |bits| bits as f64 / 2f64.powi(64))
}
