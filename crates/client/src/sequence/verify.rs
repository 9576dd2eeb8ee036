//! A sample of results is computed again by other servers.
//!
//! Whoever can tell that it is checked behaves. So with verification on, every hop goes through this client (a chain's
//! inputs would have to be asked for again), and a check looks to its servers like any other request. Two results agree if they
//! differ by no more than the dtypes of the wire and of the servers explain. If they do not, a third server decides;
//! where there is none, each of the two is asked again, and one that contradicts itself is found out. If both stand by
//! their word the client says so and goes on with the first one, as it cannot know better.

use std::collections::HashSet;
use std::sync::Mutex;

use petals_protocol::{Span, WireDtype};
use petals_swarm::PeerId;
use rand::TryRngCore;
use rand::rngs::OsRng;

use super::trace::HopRecord;
use super::{PassInput, RelayMode, RemoteSequence, SwarmEvent};
use crate::lock::lock;
use crate::planner::{Exclusion, Hop, Planner};
use crate::servers::exchange::Flow;
use crate::servers::hop::HopError;

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

    /// Whether `peer` was found to give wrong results.
    pub(crate) fn is_untrue(&self, peer: PeerId) -> bool {
        self.view.peers().is_untrue(peer)
    }

    /// Nobody but this machine can know what is. A system without random numbers has everything checked.
    fn is_sampled(&self) -> bool {
        let draw = || OsRng.try_next_u64().map_or(0.0, |bits| bits as f64 / 2f64.powi(64));
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
        if let Some(third) = self.opinion(asked, &without).await {
            if agree(&[second.peers.as_slice(), third.peers.as_slice()], &second.result, &third.result) {
                count(|found| found.untrue += 1);
                return Err(HopError::Untrue(difference));
            }
            if agree(&[&[peer], third.peers.as_slice()], result, &third.result) {
                self.accuse(&second, asked.span, &difference);
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
            self.accuse(&second, asked.span, &format!("not the same when asked twice; {difference}"));
            return Ok(());
        }
        let other = second.peers.first().copied().unwrap_or(peer);
        self.tell(SwarmEvent::Disagreement { peer, other, span: asked.span, reason: difference });
        Ok(())
    }

    /// The second opinion was wrong. If several servers gave it together nobody knows which of them.
    fn accuse(&self, opinion: &Opinion, span: Span, reason: &str) {
        let [peer] = opinion.peers.as_slice() else {
            for peer in &opinion.peers {
                self.view.failed(*peer);
            }
            return;
        };
        lock(&self.verifier.0).untrue += 1;
        self.view.untrue(*peer);
        self.tell(SwarmEvent::UntrueResult { peer: *peer, span, reason: reason.to_owned() });
    }

    /// The answer of servers other than those in `without`; none if there are no others.
    async fn opinion(&self, asked: Question<'_>, without: &[PeerId]) -> Option<Opinion> {
        let (pass, without) = (self.pass_of(asked.input), without.iter().copied().collect::<HashSet<PeerId>>());
        for _ in 0..ATTEMPTS {
            let candidates = self.candidates(pass, RelayMode::Star, &without, Exclusion::Without);
            let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
            let hops = planner.fastest(asked.span).ok()?.hops;
            if hops.iter().any(|hop| self.is_banned(hop.peer)) {
                return None;
            }
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
        let last = hops.len().saturating_sub(1);
        for (number, &hop) in hops.iter().enumerate() {
            // The last one's output is of no use to a backward, which brings its own gradient.
            if matches!(wanted, Wanted::Gradients(_)) && number == last {
                records.push(HopRecord { hop, flow: Some(flow.clone()), stash: None, timing: Default::default() });
                break;
            }
            let failed = |error| (hop.peer, error);
            let (left, timing) = if let Wanted::KeysValues(of_row) = wanted {
                let (result, timing) = self.keys_values_of_hop(input, hop, &flow, of_row).await.map_err(failed)?;
                parts.extend(result.tables);
                (result.flow, timing)
            } else {
                let (left, _, timing) = self.forward_hop(input, hop, &flow, false).await.map_err(failed)?;
                (left, timing)
            };
            let entered = std::mem::replace(&mut flow, left);
            records.push(HopRecord { hop, flow: Some(entered), stash: None, timing });
        }
        let Wanted::Gradients(grad) = wanted else {
            return Ok(SpanResult { flow, tables: (!parts.is_empty()).then(|| parts.concat()) });
        };
        let mut grad = grad.clone();
        for HopRecord { hop, flow, .. } in records.iter().rev() {
            let failed = |error| (hop.peer, error);
            let done = self.ask_backward(input, *hop, flow.as_ref(), None, &grad).await.map_err(failed)?;
            grad = done.grad.ok_or_else(|| failed(HopError::BadReply("no gradient".into())))?;
            parts.extend(done.tables);
        }
        let tables = (!parts.is_empty()).then(|| parts.into_iter().rev().flatten().collect());
        Ok(SpanResult { flow: grad, tables })
    }

    /// How two results differ, if by more than their dtypes explain.
    fn difference(
        &self,
        peers: &[&[PeerId]],
        asked: Question<'_>,
        one: &SpanResult,
        other: &SpanResult,
    ) -> Option<String> {
        let computed = peers.iter().copied().flatten().map(|&peer| {
            let dtype = self.view.info(peer).map(|info| info.dtype).unwrap_or_default();
            match dtype.as_str() {
                "f32" => EXACT,
                "f16" => 1e-2,
                "int4" => OF_FOUR_BITS,
                _ => 5e-2,
            }
        });
        let wire = match self.config.wire_dtype {
            WireDtype::F32 => EXACT,
            WireDtype::F16 => 1e-2,
            WireDtype::Bf16 => 5e-2,
            WireDtype::Int8 => 1e-1,
        };
        // Gradients have gone both ways, through more roundings.
        let backward = matches!(asked.wanted, Wanted::Gradients(_));
        let ways = if backward { 2.0 } else { 1.0 };
        let allowed = ways * computed.fold(wire, f64::max);
        let none = Vec::new();
        let parts = [
            ("hidden states", &*one.flow.text, &*other.flow.text),
            ("prefix", one.flow.prefix.as_ref().unwrap_or(&none), other.flow.prefix.as_ref().unwrap_or(&none)),
            ("tables", one.tables.as_ref().unwrap_or(&none), other.tables.as_ref().unwrap_or(&none)),
        ];
        parts.into_iter().find_map(|(what, one, other)| {
            let difference = relative_difference(one, other);
            (difference.is_nan() || difference > allowed).then(|| {
                let of = if backward { "gradients of the " } else { "" };
                format!("{of}{what} differ by {:.1e} of their size, {allowed:.1e} is usual", difference)
            })
        })
    }
}

/// What rounding to f32 leaves, summed in another order over many blocks.
const EXACT: f64 = 1e-3;
/// What four bits of a weight leave, in one server or in two that were made by different versions or from different checkpoints.
const OF_FOUR_BITS: f64 = 3e-1;

/// The norm of the difference over the larger norm. Infinite for values of different number.
fn relative_difference(one: &[f32], other: &[f32]) -> f64 {
    if one.len() != other.len() {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = norm(&mut one.iter().map(|&x| x.into())).max(norm(&mut other.iter().map(|&x| x.into())));
    let apart = norm(&mut one.iter().zip(other).map(|(&x, &y)| f64::from(x) - f64::from(y)));
    if apart == 0.0 { 0.0 } else { apart / size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_whole() {
        assert_eq!(relative_difference(&[], &[]), 0.0);
        assert_eq!(relative_difference(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((relative_difference(&[3.0, 4.0], &[3.0, 4.5]) - 0.5 / 29.25f64.sqrt()).abs() < 1e-9);
        assert_eq!(relative_difference(&[1.0], &[-1.0]), 2.0);
        assert!(relative_difference(&[1.0], &[]).is_infinite());
    }
}
