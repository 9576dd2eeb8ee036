//! What a prefix becomes in every block, asked of whoever serves them: keys and values, or hidden states.

use petals_protocol::Span;

use super::trace::HopTiming;
use super::verify::{Question, SpanResult, Wanted};
use super::{PassInput, RemoteSequence, SequenceError, Way};
use crate::planner::Hop;
use crate::servers::exchange::{Ends, Flow};
use crate::servers::hop::HopError;
use crate::servers::retry::Retry;

impl RemoteSequence {
    /// Keys beside values of the prefix of `input`'s tables as every block's rows attend to them, `[blocks, prefix_len, 2·key]`. The text
    /// behind it does not matter and should be short.
    ///
    /// # Errors
    /// See [`SequenceError`]; failures of single servers are not errors.
    pub async fn prefix_keys_values(&self, mut input: PassInput) -> Result<Vec<f32>, SequenceError> {
        let Some(tables) = input.tables.clone() else { return Ok(Vec::new()) };
        let of_row = 2 * tables.shape().widths.key;
        let prefix = tables.carries_prefix().then(|| tables.input().to_vec());
        let flow = Flow { text: std::mem::take(&mut input.text).into(), prefix };
        let (mut flow, mut all) = self.enter_with_keys_values(&input, flow).await?;
        let (pass, mut at) = (self.pass_of(&input), self.served.start());
        let mut retry = Retry::new(self.config.give_up_after);
        while let Ok(rest) = Span::new(at, self.blocks.end()) {
            // Planned anew for every hop: this is done once for a run, and never in a chain.
            let route = self.plan(rest, pass, Way::STAR, &mut retry).await?;
            let Some(&hop) = route.first() else { continue };
            let ask = |hop| self.keys_values_of_hop(&input, hop, &flow, of_row);
            let done = match self.raced(hop, pass, 1.0, ask(hop), ask).await {
                Ok((hop, (result, _))) => {
                    let wanted = Wanted::KeysValues(of_row);
                    let asked = Question { input: &input, span: hop.span, flow: &flow, wanted, stash: false };
                    self.check(hop.peer, asked, &result).await.map(|()| (hop, result)).map_err(|error| (hop, error))
                }
                Err(error) => Err((hop, error)),
            };
            match done {
                Ok((hop, SpanResult { flow: left, tables })) => {
                    all.extend(tables.unwrap_or_default());
                    (flow, at) = (left, hop.span.end());
                    self.accepted(rest, std::mem::replace(&mut retry, Retry::new(self.config.give_up_after)));
                }
                Err((hop, error)) => self.recover(pass, hop, error, &mut retry).await?,
            }
        }
        Ok(all)
    }

    /// Hidden states of the carried prefix of `input`'s tables as they enter every block, `[blocks, prefix_len, hidden]`.
    ///
    /// # Errors
    /// See [`SequenceError`]; failures of single servers are not errors.
    pub async fn prefix_states(&self, mut input: PassInput) -> Result<Vec<f32>, SequenceError> {
        let Some(tables) = input.tables.clone() else { return Ok(Vec::new()) };
        let mut flow = Flow { text: std::mem::take(&mut input.text).into(), prefix: Some(tables.input().to_vec()) };
        let (mut all, mut records) = (Vec::new(), Vec::new());
        for block in self.blocks.blocks() {
            all.extend_from_slice(flow.prefix.as_deref().unwrap_or_default());
            // What enters a block is what leaves the one before it, and is told where a hop ends.
            if let Ok(span) = Span::new(block, block + 1)
                && span.end() < self.blocks.end()
            {
                flow = match self.enter_block(&input, span, flow).await? {
                    Ok(left) => left,
                    Err(flow) => self.advance(&input, span, flow, false, Way::STAR, &mut records).await?,
                };
                records.clear();
            }
        }
        Ok(all)
    }

    /// What leaves a hop, and the keys and values of the prefix in its blocks.
    pub(super) async fn keys_values_of_hop(
        &self,
        input: &PassInput,
        hop: Hop,
        flow: &Flow,
        of_row: usize,
    ) -> Result<(SpanResult, HopTiming), HopError> {
        let connection = self.view.connection(hop.peer, self.config.request_timeout).await?;
        let answer = self.hop_input(input, hop, Some(flow), Ends::default()).keys_values(&connection, of_row).await?;
        self.view.succeeded(hop.peer, answer.measured);
        let flow = answer.output.ok_or_else(|| HopError::BadReply("no output".into()))?;
        Ok((SpanResult { flow, tables: answer.keys_values }, answer.measured.into()))
    }
}
