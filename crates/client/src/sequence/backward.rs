//! Backward through the hops of a forward, last to first.

use std::sync::Arc;

use petals_protocol::{Refusal, Span, StashId};

use super::hedge::BACKWARD;
use super::recover::BUSY_ATTEMPTS;
use super::sizes::{Kind, is_overflow, largest, largest_of};
use super::trace::{HopRecord, HopTiming};
use super::verify::{Question, SpanResult, Wanted};
use super::{PassGradients, PassInput, RelayMode, RemoteSequence, SequenceError, Trace, Way};
use crate::planner::Hop;
use crate::servers::exchange::{BackwardInput, Backwarded, Ends, Flow};
use crate::servers::hop::{HopConnection, HopError};
use crate::servers::retry::Retry;

impl RemoteSequence {
    /// Carries the gradient of the rows read, `[rows, hidden]`, back to the tables.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn backward(&self, mut trace: Trace, grad: Vec<f32>) -> Result<PassGradients, SequenceError> {
        let input = trace.input.clone();
        let mut gradients = PassGradients::default();
        let mut flow = Flow { text: Arc::new(grad), prefix: None };
        let mut retry = Retry::new(self.config.give_up_after);
        // Whose gradients the next one gets, what had entered its span, and the gradients that it was given.
        let mut supplier: Option<(Hop, Option<Flow>, Flow)> = None;
        // The span for whose sake somebody was doubted: whoever rejects what others give as well is to blame himself.
        let mut doubting = None;
        let (pass, mut relay) = (self.pass_of(&input), self.config.relay);
        loop {
            let run = self.relays.run_back(&trace.hops, relay);
            if run > 1 {
                let chain = trace.hops.split_off(trace.hops.len() - run);
                match self.backward_chain(&input, chain, &flow).await {
                    Ok((grads, hops)) => {
                        flow = grads;
                        hops.into_iter().for_each(|hop| gradients.add(hop));
                        retry = Retry::new(self.config.give_up_after);
                    }
                    Err(chain) => {
                        trace.hops.extend(chain);
                        relay = RelayMode::Star;
                    }
                }
                continue;
            }
            let Some(mut record) = trace.hops.pop() else { break };
            if record.flow.is_none() && !record.has_stash() {
                trace.hops.push(record);
                self.recall(&input, &mut trace.hops).await?;
                continue;
            }
            if self.is_untrue(record.hop.peer)
                && let Some(entered) = record.flow.take()
            {
                self.reroute(&input, record.hop.span, entered, &mut trace.hops).await?;
                continue;
            }
            let had_stash = record.stash.is_some();
            match self.checked_backward(&input, &mut record, &flow).await {
                Ok((grads, hop)) => {
                    let given = std::mem::replace(&mut flow, grads);
                    supplier = Some((hop.hop, record.flow.take(), given));
                    self.accepted(hop.hop.span, std::mem::replace(&mut retry, Retry::new(self.config.give_up_after)));
                    gradients.add(hop);
                }
                Err((_, HopError::Refused(Refusal::StashGone))) if had_stash => {
                    tracing::debug!(peer = %record.hop.peer, span = %record.hop.span, "stash gone, sending the inputs again");
                    trace.hops.push(record);
                }
                // Values that this server cannot use may be the fault of whoever gave them: that one's part is done by others first.
                Err((hop, error))
                    if is_overflow(&error)
                        && doubting != Some(record.hop.span)
                        && supplier
                            .as_ref()
                            .is_some_and(|(by, entered, _)| entered.is_some() && self.is_replaceable(*by)) =>
                {
                    record.stash = None;
                    doubting = Some(record.hop.span);
                    trace.hops.push(record);
                    if let Some((by, Some(entered), given)) = supplier.take() {
                        tracing::debug!(peer = %hop.peer, supplier = %by.peer, "gradients that are of no use to the next server");
                        self.doubted(by, &error);
                        self.view.failed(by.peer);
                        gradients.forget(by);
                        flow = given;
                        self.reroute(&input, by.span, entered, &mut trace.hops).await?;
                    }
                }
                Err((hop, error)) => {
                    self.recover(pass, hop, error, &mut retry).await?;
                    // A stash is worth waiting for, but not for ever.
                    let elsewhere = || self.planned(record.hop.span, pass, &retry);
                    if retry.attempts() >= BUSY_ATTEMPTS
                        && elsewhere().is_some_and(|hops| hops.iter().all(|hop| hop.peer != record.hop.peer))
                    {
                        record.stash = None;
                    }
                    match record.flow.take() {
                        Some(flow) if record.stash.is_none() => {
                            self.reroute(&input, record.hop.span, flow, &mut trace.hops).await?;
                        }
                        // Only busy, and the stash is still there; or what went in has to be found out first.
                        flow => {
                            record.flow = flow;
                            trace.hops.push(record);
                        }
                    }
                }
            }
        }
        if let Some(stash) = trace.local.take() {
            flow = self.leave(stash, flow, &mut gradients).await?;
        }
        gradients.prefix = flow.prefix;
        Ok(gradients)
    }

    /// Puts hops over `span`, whose input is `flow`, behind `hops`.
    async fn reroute(
        &self,
        input: &PassInput,
        span: Span,
        flow: Flow,
        hops: &mut Vec<HopRecord>,
    ) -> Result<(), SequenceError> {
        let mut retry = Retry::new(self.config.give_up_after);
        let route = self.plan(span, self.pass_of(input), Way::STAR, &mut retry).await?;
        match route.as_slice() {
            // The backward itself will send the inputs.
            [hop] => {
                hops.push(HopRecord { hop: *hop, flow: Some(flow), stash: None, timing: HopTiming::default() });
            }
            _ => {
                self.advance(input, span, flow, true, Way::STAR, hops).await?;
            }
        }
        Ok(())
    }

    /// Replaces the last hop, whose input went from server to server and is lost, and those in front of it up to the last
    /// known input, by hops whose inputs are known.
    async fn recall(&self, input: &PassInput, hops: &mut Vec<HopRecord>) -> Result<(), SequenceError> {
        let Some(end) = hops.last().map(|record| record.hop.span.end()) else { return Ok(()) };
        // The first hop's input is always known: it came from here.
        while let Some(HopRecord { hop, flow, .. }) = hops.pop() {
            let Some((flow, span)) = flow.zip(Span::new(hop.span.start(), end).ok()) else { continue };
            tracing::debug!(%span, "running forward again to know what goes in");
            return self.reroute(input, span, flow, hops).await;
        }
        Ok(())
    }

    /// Runs one hop backward; a sample of the results is checked. With an error comes whose it is.
    async fn checked_backward(
        &self,
        input: &PassInput,
        record: &mut HopRecord,
        grad: &Flow,
    ) -> Result<(Flow, HopGradients), (Hop, HopError)> {
        let (flow, mut hop) = self.backward_hop(input, record, grad).await.map_err(|error| (record.hop, error))?;
        let (size, tables) = (largest_of(grad), hop.tables.as_deref().unwrap_or_default());
        self.plausible(Kind::Gradient, hop.hop.span, size, largest_of(&flow))
            .and_then(|()| self.plausible(Kind::Tables, hop.hop.span, size, largest(tables)))
            .map_err(|error| (hop.hop, error))?;
        let Some(entered) = &record.flow else { return Ok((flow, hop)) };
        let result = SpanResult { flow, tables: hop.tables.take() };
        let (span, wanted) = (hop.hop.span, Wanted::Gradients(grad));
        let asked = Question { input, span, flow: entered, wanted, stash: true };
        self.check(hop.hop.peer, asked, &result).await.map_err(|error| (hop.hop, error))?;
        Ok((result.flow, HopGradients { tables: result.tables, ..hop }))
    }

    /// Runs one hop backward, with its stash if there is one. A stash that was not used up stays in the record.
    async fn backward_hop(
        &self,
        input: &PassInput,
        record: &mut HopRecord,
        grad: &Flow,
    ) -> Result<(Flow, HopGradients), HopError> {
        let mut stash = record.stash.take().filter(|stash| stash.connection.is_open());
        let (hop, pass) = (record.hop, self.pass_of(input));
        let (flow, named) = (record.flow.as_ref(), stash.as_ref().map(|stash| (stash.id, stash.connection.clone())));
        let first = self.ask_backward(input, hop, flow, named, grad);
        // Only the first one has the stash. If what went in is not known here, nobody else can be asked before it is.
        let result = self.raced(hop, pass, BACKWARD, first, |other| async move {
            match flow {
                Some(_) => self.ask_backward(input, other, flow, None, grad).await,
                None => Err(HopError::Refused(Refusal::StashGone)),
            }
        });
        let result = result.await;
        if matches!(result, Err(HopError::Refused(Refusal::Busy { .. }))) {
            record.stash = stash;
        } else if let Some(stash) = &mut stash {
            stash.used = matches!(&result, Ok((by, _)) if *by == hop) || matches!(result, Err(HopError::Refused(_)));
        }
        let (by, Backwarded { grad, tables, measured }) = result?;
        let grad = grad.ok_or_else(|| HopError::BadReply("no gradient".into()))?;
        Ok((grad, HopGradients { hop: by, tables, timing: measured.into() }))
    }

    pub(super) async fn ask_backward(
        &self,
        input: &PassInput,
        hop: Hop,
        flow: Option<&Flow>,
        stash: Option<(StashId, Arc<HopConnection>)>,
        grad: &Flow,
    ) -> Result<Backwarded, HopError> {
        let (stash, connection) = match stash {
            Some((id, connection)) => (Some(id), connection),
            None => (None, self.view.connection(hop.peer, self.config.request_timeout).await?),
        };
        let text_grad = self.wants_text_grad(input, hop.span);
        let request = self.hop_input(input, hop, flow, Ends::default());
        request.backward(&connection, BackwardInput { stash, grad: Some(grad), text_grad }).await
    }
}

/// What a hop's backward leaves at the client.
pub(super) struct HopGradients {
    pub(super) hop: Hop,
    pub(super) tables: Option<Vec<f32>>,
    pub(super) timing: HopTiming,
}

impl PassGradients {
    /// Takes back what a hop has left.
    fn forget(&mut self, hop: Hop) {
        self.tables.retain(|(span, _)| *span != hop.span);
        self.timings.retain(|(timed, _)| *timed != hop);
    }

    fn add(&mut self, hop: HopGradients) {
        let HopGradients { hop, tables, timing } = hop;
        self.tables.extend(tables.map(|tables| (hop.span, tables)));
        self.timings.push((hop, timing));
    }
}
