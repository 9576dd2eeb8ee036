//! Several hops as one chain: the servers pass the rows on to each other, the client asks each of them for its part.
//!
//! Every server is asked on this client's own stream, so its checks, its stash and its refusals are as for a single hop.
//! Whatever fails anywhere fails the chain: the other requests are given up, and the caller falls back to single hops.

use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use petals_protocol::{NextServer, Refusal, RelayToken, RowSource, RowTarget, Span};
use petals_swarm::PeerId;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::task::JoinSet;

use futures::future::try_join_all;

use super::backward::HopGradients;
use super::error::chain as causes;
use super::hedge::BACKWARD;
use super::sizes::{Kind, largest, largest_of};
use super::trace::{HopRecord, Stashed};
use super::{PassInput, RemoteSequence, SwarmEvent};
use crate::lock::lock;
use crate::planner::Hop;
use crate::servers::exchange::{BackwardInput, Ends, Flow, Forwarded};
use crate::servers::hop::HopError;
use crate::servers::peers::PassSize;

/// How far a chain has come: which hops have answered, and when the last one did.
struct Progress(Mutex<(Vec<bool>, Instant)>);

impl Progress {
    fn new(hops: usize) -> Self {
        Self(Mutex::new((vec![false; hops], Instant::now())))
    }

    /// Takes note of an answer; how long the chain has waited for it since the one before.
    fn answered(&self, number: usize) -> Duration {
        let mut progress = lock(&self.0);
        if let Some(answered) = progress.0.get_mut(number) {
            *answered = true;
        }
        std::mem::replace(&mut progress.1, Instant::now()).elapsed()
    }

    /// The first hop in the order of travel that has not answered, and since when it is the one that is waited for.
    fn waits_for(&self, mut travel: impl Iterator<Item = usize>) -> Option<(usize, Instant)> {
        let progress = lock(&self.0);
        let number = travel.find(|&number| progress.0.get(number) == Some(&false))?;
        Some((number, progress.1))
    }
}

/// Which hop of a chain failed, and how.
pub(crate) type Failure = (usize, HopError);

impl RemoteSequence {
    /// Runs hops forward; returns what leaves the last one, and their records without inputs. `None` if that failed.
    pub(super) async fn forward_chain(
        &self,
        input: &PassInput,
        hops: &[Hop],
        flow: &Flow,
        keep: bool,
    ) -> Option<(Flow, Vec<HopRecord>)> {
        match self.try_forward_chain(input, hops, flow, keep).await {
            Ok((output, records)) => {
                let plausible = |span| self.plausible(Kind::Rows, span, largest_of(flow), largest_of(&output));
                match spanned(hops).map_or(Ok(()), plausible) {
                    Ok(()) => Some((output, records)),
                    Err(error) => self.implausible(hops, &error),
                }
            }
            Err(failure) => {
                self.chain_failed(hops, failure);
                None
            }
        }
    }

    async fn try_forward_chain(
        &self,
        input: &PassInput,
        hops: &[Hop],
        flow: &Flow,
        keep: bool,
    ) -> Result<(Flow, Vec<HopRecord>), Failure> {
        let at = |number: usize| move |error| (number, error);
        let patience = self.config.request_timeout;
        let open =
            hops.iter().enumerate().map(async |(n, hop)| self.view.connection(hop.peer, patience).await.map_err(at(n)));
        let connections = try_join_all(open).await?;
        let ends = ends(hops.iter().map(|hop| hop.peer)).map_err(at(0))?;
        let requests = hops.iter().zip(connections).zip(ends).map(async |((&hop, connection), ends)| {
            let stash = keep.then(|| Stashed { id: self.stash_id(), connection: connection.clone(), used: false });
            let request = self.hop_input(input, hop, Some(flow), ends);
            let answer = request.forward(&connection, stash.as_ref().map(|stash| stash.id)).await?;
            Ok((hop, stash, answer))
        });
        let started = Instant::now();
        let answers = self.gather(self.pass_of(input), hops, false, requests).await?;
        let measured: Vec<_> = answers.iter().map(|(hop, _, answer)| (hop.peer, answer.measured)).collect();
        self.chained(&measured, started.elapsed());
        let (mut output, mut records) = (None, Vec::with_capacity(hops.len()));
        for (hop, mut stash, answer) in answers {
            let Forwarded { output: rows, stashed, measured, .. } = answer;
            self.view.succeeded(hop.peer, measured);
            if let Some(stash) = stash.as_mut().filter(|_| !stashed) {
                stash.used = true;
                // Without a stash the input is needed again, and only the client could send it.
                if let Some(HopRecord { hop: in_front, .. }) = records.last() {
                    self.relays.avoid(in_front.peer, hop.peer);
                }
            }
            records.push(HopRecord { hop, flow: None, stash: stash.filter(|_| stashed), timing: measured.into() });
            output = rows;
        }
        let missing = || HopError::BadReply("no output".into());
        Ok((output.ok_or_else(missing).map_err(at(hops.len() - 1))?, records))
    }

    /// Runs hops, which all have their stashes, backward; returns the gradient of what enters the first one, and what
    /// each left for the client. If that fails the records come back, without their stashes.
    pub(super) async fn backward_chain(
        &self,
        input: &PassInput,
        mut records: Vec<HopRecord>,
        grad: &Flow,
    ) -> Result<(Flow, Vec<HopGradients>), Vec<HopRecord>> {
        let hops: Vec<Hop> = records.iter().map(|record| record.hop).collect();
        let done = self.try_backward_chain(input, &mut records, grad).await;
        let failed = match done {
            Ok((first, gradients)) => {
                let size = largest_of(grad);
                let whole = spanned(&hops)
                    .map_or(Ok(()), |span| self.plausible(Kind::Gradient, span, size, largest_of(&first)));
                let tables = |(span, tables): (Span, &[f32])| self.plausible(Kind::Tables, span, size, largest(tables));
                let mut parts = gradients.iter().filter_map(|part| Some((part.hop.span, part.tables.as_deref()?)));
                match whole.and_then(|()| parts.try_for_each(tables)) {
                    Ok(()) => return Ok((first, gradients)),
                    Err(error) => Err(error),
                }
            }
            Err(failure) => Ok(failure),
        };
        match failed {
            Err(error) => {
                self.implausible::<()>(&hops, &error);
                records.iter_mut().for_each(|record| record.stash = None);
                Err(records)
            }
            Ok((number, error)) => {
                self.chain_failed(&hops, (number, error));
                // Some of them were used up, nobody knows which.
                records.iter_mut().for_each(|record| record.stash = None);
                Err(records)
            }
        }
    }

    async fn try_backward_chain(
        &self,
        input: &PassInput,
        records: &mut [HopRecord],
        grad: &Flow,
    ) -> Result<(Flow, Vec<HopGradients>), Failure> {
        let at = |number: usize| move |error| (number, error);
        let mut ends = ends(records.iter().rev().map(|record| record.hop.peer)).map_err(at(0))?;
        ends.reverse();
        let hops: Vec<Hop> = records.iter().map(|record| record.hop).collect();
        let requests = records.iter_mut().zip(ends).map(async |(record, ends)| {
            let hop = record.hop;
            let mut stash = record.stash.take().ok_or(HopError::Lost)?;
            let request = self.hop_input(input, hop, None, ends);
            let text_grad = self.wants_text_grad(input, hop.span);
            let asked = BackwardInput { stash: Some(stash.id), grad: Some(grad), text_grad };
            let answer = request.backward(&stash.connection, asked).await?;
            stash.used = true;
            Ok((hop, answer))
        });
        let started = Instant::now();
        let answers = self.gather(self.pass_of(input), &hops, true, requests).await?;
        let measured: Vec<_> = answers.iter().map(|(hop, answer)| (hop.peer, answer.measured)).collect();
        self.chained(&measured, started.elapsed());
        let (mut first, mut gradients) = (None, Vec::with_capacity(answers.len()));
        // Like single hops: the last one first.
        for (hop, answer) in answers.into_iter().rev() {
            gradients.push(HopGradients { hop, tables: answer.tables, timing: answer.measured.into() });
            first = answer.grad;
        }
        Ok((first.ok_or_else(|| at(0)(HopError::BadReply("no gradient".into())))?, gradients))
    }

    /// The answers to the requests of a chain, of which one is for each hop, unless one of them fails or is late.
    pub(crate) async fn gather<T>(
        &self,
        pass: PassSize,
        hops: &[Hop],
        backward: bool,
        requests: impl Iterator<Item = impl Future<Output = Result<T, HopError>>>,
    ) -> Result<Vec<T>, Failure> {
        let progress = Progress::new(hops.len());
        let answers = requests.zip(hops).enumerate().map(async |(number, (request, hop))| {
            let answer = request.await;
            let wait = progress.answered(number);
            let answer = answer.map_err(|error| (number, error))?;
            self.view.peers().waited(hop.peer, pass.rows, wait);
            Ok(answer)
        });
        tokio::select! {
            biased;
            answers = try_join_all(answers) => answers,
            late = self.chain_is_late(pass, hops, &progress, backward) => Err(late),
        }
    }

    /// The answer of the last hop of a chain, of whose requests one is for each hop, unless one of them fails before or is late. The others'
    /// answers only say that their rows went on, which the last one's proves; they come after it.
    pub(crate) async fn last_of<T, F>(&self, pass: PassSize, hops: &[Hop], mut requests: Vec<F>) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, HopError>> + Send + 'static,
    {
        let progress = Progress::new(hops.len());
        let last = requests.len().saturating_sub(1);
        let Some(answer) = requests.pop() else { return Err((0, HopError::BadReply("a chain of no servers".into()))) };
        let mut answer = pin!(answer);
        let mut others = JoinSet::new();
        for (number, request) in requests.into_iter().enumerate() {
            others.spawn(async move { (number, request.await.err()) });
        }
        let mut late = pin!(self.chain_is_late(pass, hops, &progress, false));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    progress.answered(last);
                    // They go on by themselves. After a failure dropping them ends them.
                    if answer.is_ok() {
                        others.detach_all();
                    }
                    return answer.map_err(|error| (last, error));
                }
                Some(Ok((number, error))) = others.join_next() => {
                    progress.answered(number);
                    if let Some(error) = error {
                        return Err((number, error));
                    }
                }
                failure = &mut late => return Err(failure),
            }
        }
    }

    /// Returns when the hop that a chain waits for has been silent for much longer than usual, unless too many passes were
    /// late already. Whether it is slow or the next one does not take its rows cannot be seen from here.
    async fn chain_is_late(&self, pass: PassSize, hops: &[Hop], progress: &Progress, backward: bool) -> Failure {
        let last = hops.len().saturating_sub(1);
        let work = if backward { BACKWARD } else { 1.0 };
        loop {
            let place = |number: usize| if backward { last - number } else { number };
            let Some((number, since)) = progress.waits_for((0..hops.len()).map(place)) else {
                return std::future::pending().await;
            };
            let allowance = self.allowance(hops[number], pass, work);
            let heard = self.view.last_heard(hops[number].peer).map_or(since, |heard| heard.max(since));
            match allowance.checked_sub(heard.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => tokio::time::sleep(left).await,
                None if self.hedges.begin() => return (number, HopError::Slow(allowance)),
                None => tokio::time::sleep(allowance).await,
            }
        }
    }

    /// A chain brought what cannot be. Who of them did it shows when they are asked one by one.
    fn implausible<T>(&self, hops: &[Hop], error: &HopError) -> Option<T> {
        if let Some(&Hop { peer, span }) = hops.last() {
            self.tell(SwarmEvent::RelayFailed { peer, span, reason: causes(error) });
        }
        None
    }

    /// Takes note of who does not reach whom, and of a server that is gone. Everything else shows when the hops are tried
    /// one by one.
    pub(crate) fn chain_failed(&self, hops: &[Hop], (number, error): Failure) {
        let Some(&Hop { peer, span }) = hops.get(number) else { return };
        let reason = causes(&error);
        tracing::debug!(%peer, %span, reason, "a chain failed");
        if matches!(error, HopError::Lost | HopError::Open(_) | HopError::BadReply(_) | HopError::NotFinite(_)) {
            self.view.failed(peer);
            self.tell(SwarmEvent::HopFailed { peer, span, reason });
            return;
        }
        if let HopError::Slow(_) = error {
            // One by one it will show which of them it is, soon.
            let now = Instant::now();
            let near = hops.iter().enumerate().filter(|(at, _)| at.abs_diff(number) <= 1);
            near.for_each(|(_, hop)| self.view.peers().suspect(hop.peer, now));
        }
        // A hang can have begun anywhere; otherwise both neighbours of who failed may have to do with it.
        let everywhere = matches!(error, HopError::Timeout(_));
        for (at, pair) in hops.windows(2).enumerate() {
            if everywhere || at + 1 == number || at == number {
                self.relays.avoid(pair[0].peer, pair[1].peer);
            }
        }
        self.tell(SwarmEvent::RelayFailed { peer, span, reason });
    }
}

/// All blocks of hops that follow each other.
fn spanned(hops: &[Hop]) -> Option<Span> {
    Span::new(hops.first()?.span.start(), hops.last()?.span.end()).ok()
}

/// Where the rows of each hop come from and go to, in the order in which they travel.
pub(crate) fn ends(peers: impl ExactSizeIterator<Item = PeerId>) -> Result<Vec<Ends>, HopError> {
    let mut ends = vec![Ends::default(); peers.len()];
    for (number, peer) in peers.enumerate().skip(1) {
        let token = token()?;
        ends[number - 1].target = RowTarget::Relay(NextServer { peer: peer.to_bytes(), token });
        ends[number].source = RowSource::Relay(token);
    }
    Ok(ends)
}

/// From the operating system: whoever could guess it could deliver rows in another's name.
fn token() -> Result<RelayToken, HopError> {
    let mut bytes = [0; 16];
    let none = |_| HopError::Refused(Refusal::Internal { what: "this system has no random numbers".into() });
    OsRng.try_fill_bytes(&mut bytes).map_err(none)?;
    Ok(RelayToken(bytes))
}
