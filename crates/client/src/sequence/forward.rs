//! Forward through a span, hop by hop or chain by chain.

use std::collections::VecDeque;
use std::sync::Arc;

use petals_protocol::{Span, StashId};

use super::trace::{Flow, HopRecord, HopTiming, Stashed};
use super::{PassInput, RelayMode, RemoteSequence, SequenceError, Trace};
use crate::exchange::{Ends, Forwarded};
use crate::hop::HopError;
use crate::planner::Hop;
use crate::retry::Retry;

impl RemoteSequence {
    /// Runs a micro-batch through all blocks and returns the rows read, `[rows, hidden]`.
    ///
    /// With `keep`, servers are asked to stash what the backward needs.
    ///
    /// # Errors
    /// See [`SequenceError`]; failures of single servers are not errors.
    pub async fn forward(&self, input: PassInput, keep: bool) -> Result<(Vec<f32>, Trace), SequenceError> {
        self.forward_over(self.config.relay, input, keep).await
    }

    /// As [`Self::forward`], with the micro-batch on the way that `relay` says.
    pub(crate) async fn forward_over(
        &self,
        relay: RelayMode,
        mut input: PassInput,
        keep: bool,
    ) -> Result<(Vec<f32>, Trace), SequenceError> {
        let text = Arc::new(std::mem::take(&mut input.text));
        let prefix = input.prompts.as_ref().filter(|t| t.carries_prefix()).map(|t| t.input().to_vec());
        let mut trace = Trace { input: Arc::new(input), hops: Vec::new() };
        let flow = Flow { text, prefix };
        let output = self.advance(&trace.input, self.blocks, flow, keep, relay, &mut trace.hops).await?;
        Ok((Arc::unwrap_or_clone(output.text), trace))
    }

    /// Runs `span` forward until it is done; failed hops are routed anew, failed chains are replaced by single hops.
    pub(super) async fn advance(
        &self,
        input: &PassInput,
        span: Span,
        mut flow: Flow,
        keep: bool,
        mut relay: RelayMode,
        records: &mut Vec<HopRecord>,
    ) -> Result<Flow, SequenceError> {
        let mut at = span.start();
        let mut route = VecDeque::new();
        let mut retry = Retry::new(self.config.give_up_after);
        while let Ok(rest) = Span::new(at, span.end()) {
            let Some(&hop) = route.front() else {
                route = self.plan(rest, input.rows(), &mut retry).await?.hops.into();
                continue;
            };
            let run = self.relays.run(route.make_contiguous(), relay);
            if run > 1 {
                let chain: Vec<Hop> = route.drain(..run).collect();
                let Some((output, hops)) = self.forward_chain(input, &chain, &flow, keep).await else {
                    // Nothing is known of what went on between the servers, so the chain's whole span is repeated.
                    relay = RelayMode::Star;
                    route.clear();
                    continue;
                };
                let first = records.len();
                records.extend(hops);
                let input = std::mem::replace(&mut flow, output);
                if let Some(record) = records.get_mut(first) {
                    record.flow = Some(input);
                }
            } else {
                match self.forward_hop(input, hop, &flow, keep).await {
                    Ok((output, stash, timing)) => {
                        let flow = Some(std::mem::replace(&mut flow, output));
                        records.push(HopRecord { hop, flow, stash, timing });
                        route.pop_front();
                    }
                    Err(error) => {
                        self.recover(input, hop, error, &mut retry).await?;
                        route.clear();
                        continue;
                    }
                }
            }
            at = records.last().map_or(at, |record| record.hop.span.end());
            retry = Retry::new(self.config.give_up_after);
        }
        Ok(flow)
    }

    async fn forward_hop(
        &self,
        input: &PassInput,
        hop: Hop,
        flow: &Flow,
        keep: bool,
    ) -> Result<(Flow, Option<Stashed>, HopTiming), HopError> {
        let connection = self.view.connection(hop.peer, self.config.request_timeout).await?;
        let mut stash = keep.then(|| Stashed { id: self.stash_id(), connection: connection.clone(), used: false });
        let request = self.hop_input(input, hop, Some(flow), Ends::default());
        let answer = request.forward(&connection, stash.as_ref().map(|stash| stash.id)).await?;
        let Forwarded { output, stashed, measured } = answer;
        self.view.succeeded(hop.peer, measured);
        if let Some(stash) = stash.as_mut().filter(|_| !stashed) {
            stash.used = true;
        }
        let output = output.ok_or_else(|| HopError::BadReply("no output".into()))?;
        Ok((output, stash.filter(|_| stashed), measured.into()))
    }

    pub(super) fn stash_id(&self) -> StashId {
        StashId(self.next_stash.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}
