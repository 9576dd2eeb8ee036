//! The first blocks of a model, run by this client: servers then see what these blocks made of a text, and not its embeddings, which are as good as the
//! text itself.
//!
//! They stand in front of everything that is asked of servers: routes, chains, replays and checks begin behind them, and know nothing of them.

use std::sync::Arc;

use petals_model::{BlockStack, ForwardOutput, ForwardPass, InputGrads, Keep, OutputGrads, PassError, Stash};
use petals_protocol::{PassLayout, Span};

use super::{PassGradients, PassInput, RemoteSequence, SequenceError};
use crate::servers::exchange::Flow;

impl RemoteSequence {
    /// What leaves the local blocks, if there are any, and what their backward needs if that is to be kept.
    pub(super) async fn enter(
        &self,
        input: &PassInput,
        flow: Flow,
        keep: bool,
    ) -> Result<(Flow, Option<Stash>), SequenceError> {
        let Some(local) = &self.config.local else { return Ok((flow, None)) };
        let kept = if keep && self.trains_locally(input) { Keep::Everything } else { Keep::Nothing };
        let work = self.local_pass(input, local.span(), flow, move |stack, pass| stack.forward(pass, kept));
        let ForwardOutput { text, prefix, stash, .. } = local.compute(work).await?;
        Ok((Flow { text: text.into(), prefix }, stash))
    }

    /// As [`Self::enter`], with the keys and values of the prefix in the local blocks.
    pub(super) async fn enter_with_keys_values(
        &self,
        input: &PassInput,
        flow: Flow,
    ) -> Result<(Flow, Vec<f32>), SequenceError> {
        let Some(local) = &self.config.local else { return Ok((flow, Vec::new())) };
        let work = self.local_pass(input, local.span(), flow, |stack, pass| stack.forward_with_keys_values(pass));
        let ForwardOutput { text, prefix, keys_values, .. } = local.compute(work).await?;
        Ok((Flow { text: text.into(), prefix }, keys_values.unwrap_or_default()))
    }

    /// What leaves one of the local blocks, if it is one.
    pub(super) async fn enter_block(
        &self,
        input: &PassInput,
        span: Span,
        flow: Flow,
    ) -> Result<Result<Flow, Flow>, SequenceError> {
        let Some(local) = self.config.local.as_ref().filter(|local| local.span().covers(span)) else {
            return Ok(Err(flow));
        };
        let work = self.local_pass(input, span, flow, |stack, pass| stack.forward(pass, Keep::Nothing));
        let ForwardOutput { text, prefix, .. } = local.compute(work).await?;
        Ok(Ok(Flow { text: text.into(), prefix }))
    }

    /// Carries the gradient of what left the local blocks, as the servers gave it, on through them.
    pub(super) async fn leave(
        &self,
        stash: Stash,
        grads: Flow,
        gradients: &mut PassGradients,
    ) -> Result<Flow, SequenceError> {
        let Some(local) = &self.config.local else { return Ok(grads) };
        let (layout, hidden) = (stash.layout(), self.hidden);
        // Blocks behind them may have left no gradient on the prefix.
        let zeros = || vec![0.0; layout.prefix_rows() * hidden];
        let prefix = layout.returns_prefix().then(|| grads.prefix.unwrap_or_else(zeros));
        let grads = OutputGrads { text: Arc::unwrap_or_clone(grads.text), prefix };
        let back = local.compute(move |stack| stack.backward(stash, grads, false)).await?;
        let InputGrads { text, prefix, tables } = back;
        gradients.tables.extend(tables.map(|tables| (local.span(), tables)));
        Ok(Flow { text: text.unwrap_or_default().into(), prefix })
    }

    /// Whether a backward has to bring the gradient of the text in front of `span`: something in front of it is trained.
    pub(super) fn wants_text_grad(&self, input: &PassInput, span: Span) -> bool {
        span.start() > self.served.start() || self.trains_locally(input)
    }

    /// Whether anything is trained that local blocks have a part in.
    fn trains_locally(&self, input: &PassInput) -> bool {
        let layout = self.config.local.as_ref().map(|local| self.layout(input, local.span()));
        layout.is_some_and(|layout| layout.prefix_len > 0 || layout.has_tables())
    }

    fn local_pass<T>(
        &self,
        input: &PassInput,
        span: Span,
        flow: Flow,
        run: impl FnOnce(&BlockStack, ForwardPass<'_>) -> Result<T, PassError> + Send + 'static,
    ) -> impl FnOnce(&BlockStack) -> Result<T, PassError> + Send + 'static {
        let layout: PassLayout = self.layout(input, span);
        let tables = input.tables.as_ref().filter(|_| layout.has_tables()).and_then(|tables| tables.tables_for(span));
        let Flow { text, prefix } = flow;
        move |stack| {
            let prefix = prefix.filter(|_| layout.carries_prefix());
            run(stack, ForwardPass { layout: &layout, text: Arc::unwrap_or_clone(text), prefix, tables })
        }
    }
}
