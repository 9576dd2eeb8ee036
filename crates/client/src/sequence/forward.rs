//! Forward through a span, hop by hop or chain by chain.

use std::collections::VecDeque;
use std::sync::Arc;

use petals_protocol::{Span, StashId};

use super::sizes::{Kind, is_overflow, largest_of};
use super::trace::{HopRecord, HopTiming, Stashed};
use super::verify::{Question, SpanResult, Wanted};
use super::{PassInput, Purpose, RelayMode, RemoteSequence, SequenceError, Trace, Way};
use crate::planner::Hop;
use crate::servers::exchange::{Ends, Flow, Forwarded};
use crate::servers::hop::HopError;
use crate::servers::retry::Retry;

impl RemoteSequence {
    /// Runs a micro-batch through all blocks and returns the rows read, `[rows, hidden]`.
    ///
    /// With `keep`, servers are asked to stash what the backward needs.
    ///
    /// # Errors
    /// See [`SequenceError`]; failures of single servers are not errors.
    pub async fn forward(&self, input: PassInput, keep: bool) -> Result<(Vec<f32>, Trace), SequenceError> {
        self.forward_over(self.config.relay, Purpose::Soonest, input, keep).await
    }

    /// As [`Self::forward`], for one of many micro-batches: routes are used in proportion to what they get done.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn forward_one_of_many(&self, input: PassInput, keep: bool) -> Result<(Vec<f32>, Trace), SequenceError> {
        self.forward_over(self.config.relay, Purpose::Steady, input, keep).await
    }

    /// As [`Self::forward`], with the micro-batch on the way that `relay` says and a route for `purpose`.
    pub(crate) async fn forward_over(
        &self,
        relay: RelayMode,
        purpose: Purpose,
        mut input: PassInput,
        keep: bool,
    ) -> Result<(Vec<f32>, Trace), SequenceError> {
        let text = Arc::new(std::mem::take(&mut input.text));
        let prefix = input.tables.as_ref().filter(|t| t.carries_prefix()).map(|t| t.input().to_vec());
        let (flow, local) = self.enter(&input, Flow { text, prefix }, keep).await?;
        let mut trace = Trace { input: Arc::new(input), local, hops: Vec::new() };
        let way = Way { relay, purpose: Some(purpose) };
        let output = self.advance(&trace.input, self.served, flow, keep, way, &mut trace.hops).await?;
        Ok((Arc::unwrap_or_clone(output.text), trace))
    }

    /// Runs `span` forward until it is done; failed hops are routed anew, failed chains are replaced by single hops.
    pub(super) async fn advance(
        &self,
        input: &PassInput,
        span: Span,
        mut flow: Flow,
        keep: bool,
        mut way: Way,
        records: &mut Vec<HopRecord>,
    ) -> Result<Flow, SequenceError> {
        let mut at = span.start();
        let pass = self.pass_of(input);
        let mut route: VecDeque<Hop> = VecDeque::new();
        let mut retry = Retry::new(self.config.give_up_after);
        // The largest value of `flow`, once it is known.
        let mut size = None;
        while let Ok(rest) = Span::new(at, span.end()) {
            let Some(&hop) = route.front() else {
                route = self.plan(rest, pass, way, &mut retry).await?.into();
                continue;
            };
            let run = self.relays.run(route.make_contiguous(), way.relay);
            if run > 1 {
                let chain: Vec<Hop> = route.drain(..run).collect();
                let Some((output, hops)) = self.forward_chain(input, &chain, &flow, keep).await else {
                    // Nothing is known of what went on between the servers, so the chain's whole span is repeated.
                    way = Way::STAR;
                    route.clear();
                    continue;
                };
                let first = records.len();
                records.extend(hops);
                let input = std::mem::replace(&mut flow, output);
                size = None;
                if let Some(record) = records.get_mut(first) {
                    record.flow = Some(input);
                }
            } else {
                let ask = |hop| self.forward_hop(input, hop, &flow, keep);
                match self.raced(hop, pass, 1.0, ask(hop), ask).await {
                    Ok((hop, (output, stash, timing))) => {
                        let entered = *size.get_or_insert_with(|| largest_of(&flow));
                        let left = largest_of(&output);
                        if let Err(error) = self.plausible(Kind::Rows, hop.span, entered, left) {
                            self.recover(pass, hop, error, &mut retry).await?;
                            route.clear();
                            continue;
                        }
                        let result = SpanResult { flow: output, tables: None };
                        let (span, wanted) = (hop.span, Wanted::Output);
                        let asked = Question { input, span, flow: &flow, wanted, stash: keep };
                        if let Err(error) = self.check(hop.peer, asked, &result).await {
                            self.recover(pass, hop, error, &mut retry).await?;
                            route.clear();
                            continue;
                        }
                        let output = result.flow;
                        let flow = Some(std::mem::replace(&mut flow, output));
                        size = Some(left);
                        records.push(HopRecord { hop, flow, stash, timing });
                        route.pop_front();
                    }
                    Err(error) => {
                        // Values that this server cannot use may be the fault of whoever gave them: that one's part is done by others first.
                        let known = |record: &mut HopRecord| {
                            let is_of_pass = record.flow.is_some() && record.hop.span.start() >= span.start();
                            is_of_pass && self.is_replaceable(record.hop)
                        };
                        if is_overflow(&error)
                            && retry.rejected_by().is_empty()
                            && let Some(HopRecord { hop: Hop { peer, span }, flow: Some(entered), .. }) =
                                records.pop_if(known)
                        {
                            self.doubted(Hop { peer, span }, &error);
                            retry.rejected(peer, false);
                            (flow, size, at) = (entered, None, span.start());
                        } else {
                            self.recover(pass, hop, error, &mut retry).await?;
                        }
                        route.clear();
                        continue;
                    }
                }
            }
            at = records.last().map_or(at, |record| record.hop.span.end());
            // Who was passed over for what it gave stays so until those behind it are done.
            if retry.rejected_by().is_empty() || at == span.end() || !retry.doubtful().is_empty() {
                self.accepted(rest, std::mem::replace(&mut retry, Retry::new(self.config.give_up_after)));
            }
        }
        Ok(flow)
    }

    pub(super) async fn forward_hop(
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
        let Forwarded { output, stashed, measured, .. } = answer;
        self.view.succeeded(hop.peer, measured);
        if let Some(stash) = stash.as_mut().filter(|_| !stashed) {
            stash.used = true;
        }
        let output = output.ok_or_else(|| HopError::BadReply("no output".into()))?;
        Ok((output, stash.filter(|_| stashed), measured.into()))
    }

    pub(super) fn stash_id(&self) -> StashId {
        StashId(self.next_name.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}
