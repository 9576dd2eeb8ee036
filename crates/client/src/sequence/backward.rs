//! Backward through the hops of a forward, last to first.

use std::sync::Arc;

use petals_protocol::{Refusal, Span};

use super::trace::{Flow, HopRecord, HopTiming};
use super::{PassGradients, PassInput, RelayMode, RemoteSequence, SequenceError, Trace};
use crate::exchange::{BackwardInput, Backwarded, Ends};
use crate::hop::HopError;
use crate::retry::Retry;

impl RemoteSequence {
    /// Carries the gradient of the rows read, `[rows, hidden]`, back to the prompts.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn backward(&self, mut trace: Trace, grad: Vec<f32>) -> Result<PassGradients, SequenceError> {
        let input = trace.input.clone();
        let mut gradients = PassGradients::default();
        let mut flow = Flow { text: Arc::new(grad), prefix: None };
        let mut retry = Retry::new(self.config.give_up_after);
        let mut relay = self.config.relay;
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
            let had_stash = record.stash.is_some();
            match self.backward_hop(&input, &mut record, &flow).await {
                Ok((grads, hop)) => {
                    flow = grads;
                    gradients.add(hop);
                    retry = Retry::new(self.config.give_up_after);
                }
                Err(HopError::Refused(Refusal::StashGone)) if had_stash => {
                    tracing::debug!(peer = %record.hop.peer, span = %record.hop.span, "stash gone, sending the inputs again");
                    trace.hops.push(record);
                }
                Err(error) => {
                    self.recover(&input, record.hop, error, &mut retry).await?;
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
        let route = self.plan(span, input.rows(), &mut Retry::new(self.config.give_up_after)).await?;
        match route.hops.as_slice() {
            // The backward itself will send the inputs.
            [hop] => {
                hops.push(HopRecord { hop: *hop, flow: Some(flow), stash: None, timing: HopTiming::default() });
            }
            _ => {
                self.advance(input, span, flow, true, RelayMode::Star, hops).await?;
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

    async fn backward_hop(
        &self,
        input: &PassInput,
        record: &mut HopRecord,
        grad: &Flow,
    ) -> Result<(Flow, HopGradients), HopError> {
        let mut stash = record.stash.take().filter(|stash| stash.connection.is_open());
        let connection = match &stash {
            Some(stash) => stash.connection.clone(),
            None => self.view.connection(record.hop.peer, self.config.request_timeout).await?,
        };
        let text_grad = record.hop.span.start() > self.blocks.start();
        let id = stash.as_ref().map(|stash| stash.id);
        let request = self.hop_input(input, record.hop, record.flow.as_ref(), Ends::default());
        let result = request.backward(&connection, BackwardInput { stash: id, grad: Some(grad), text_grad }).await;
        if matches!(result, Err(HopError::Refused(Refusal::Busy { .. }))) {
            record.stash = stash;
        } else if let Some(stash) = &mut stash {
            stash.used = true;
        }
        let Backwarded { grad, prompts, measured } = result?;
        let grad = grad.ok_or_else(|| HopError::BadReply("no gradient".into()))?;
        Ok((grad, HopGradients { hop: record.hop, prompts, timing: measured.into() }))
    }
}

/// What a hop's backward leaves at the client.
pub(super) struct HopGradients {
    pub(super) hop: crate::planner::Hop,
    pub(super) prompts: Option<Vec<f32>>,
    pub(super) timing: HopTiming,
}

impl PassGradients {
    fn add(&mut self, hop: HopGradients) {
        let HopGradients { hop, prompts, timing } = hop;
        self.prompts.extend(prompts.map(|prompts| (hop.span, prompts)));
        self.timings.push((hop, timing));
    }
}
