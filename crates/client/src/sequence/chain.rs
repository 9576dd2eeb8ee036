//! Several hops as one chain: the servers pass the rows on to each other, the client asks each of them for its part.
//!
//! Every server is asked on this client's own stream, so its checks, its stash and its refusals are as for a single hop.
//! Whatever fails anywhere fails the chain: the other requests are given up, and the caller falls back to single hops.

use petals_protocol::{NextServer, Refusal, RelayToken, RowSource, RowTarget};
use petals_swarm::PeerId;
use rand::TryRngCore;
use rand::rngs::OsRng;

use futures::future::try_join_all;

use super::backward::HopGradients;
use super::error::chain as causes;
use super::trace::{Flow, HopRecord, Stashed};
use super::{PassInput, RemoteSequence, SwarmEvent};
use crate::exchange::{BackwardInput, Ends, Forwarded};
use crate::hop::HopError;
use crate::planner::Hop;

/// Which hop of a chain failed, and how.
type Failure = (usize, HopError);

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
            Ok(done) => Some(done),
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
        let requests =
            hops.iter().zip(connections).zip(ends).enumerate().map(async |(number, ((&hop, connection), ends))| {
                let stash = keep.then(|| Stashed { id: self.stash_id(), connection: connection.clone(), used: false });
                let request = self.hop_input(input, hop, Some(flow), ends);
                let answer = request.forward(&connection, stash.as_ref().map(|stash| stash.id)).await;
                answer.map(|answer| (hop, stash, answer)).map_err(at(number))
            });
        let (mut output, mut records) = (None, Vec::with_capacity(hops.len()));
        for (hop, mut stash, answer) in try_join_all(requests).await? {
            let Forwarded { output: rows, stashed, measured } = answer;
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
        match self.try_backward_chain(input, &mut records, grad).await {
            Ok(done) => Ok(done),
            Err((number, error)) => {
                let hops: Vec<Hop> = records.iter().map(|record| record.hop).collect();
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
        let requests = records.iter_mut().zip(ends).enumerate().map(async |(number, (record, ends))| {
            let hop = record.hop;
            let mut stash = record.stash.take().ok_or((number, HopError::Lost))?;
            let request = self.hop_input(input, hop, None, ends);
            let text_grad = hop.span.start() > self.blocks.start();
            let asked = BackwardInput { stash: Some(stash.id), grad: Some(grad), text_grad };
            let answer = request.backward(&stash.connection, asked).await.map_err(at(number))?;
            stash.used = true;
            Ok((hop, answer))
        });
        let answers = try_join_all(requests).await?;
        let (mut first, mut gradients) = (None, Vec::with_capacity(answers.len()));
        // Like single hops: the last one first.
        for (hop, answer) in answers.into_iter().rev() {
            gradients.push(HopGradients { hop, prompts: answer.prompts, timing: answer.measured.into() });
            first = answer.grad;
        }
        Ok((first.ok_or_else(|| at(0)(HopError::BadReply("no gradient".into())))?, gradients))
    }

    /// Takes note of who does not reach whom, and of a server that is gone. Everything else shows when the hops are tried
    /// one by one.
    fn chain_failed(&self, hops: &[Hop], (number, error): Failure) {
        let Some(&Hop { peer, span }) = hops.get(number) else { return };
        let reason = causes(&error);
        tracing::debug!(%peer, %span, reason, "a chain failed");
        if matches!(error, HopError::Lost | HopError::Open(_) | HopError::BadReply(_)) {
            self.view.failed(peer);
            self.tell(SwarmEvent::HopFailed { peer, span, reason });
            return;
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

/// Where the rows of each hop come from and go to, in the order in which they travel.
fn ends(peers: impl ExactSizeIterator<Item = PeerId>) -> Result<Vec<Ends>, HopError> {
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
