//! Requests of one hop: tensors out, checked tensors in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_protocol::{
    BackwardRequest, ForwardRequest, PassLayout, PromptSource, Refusal, Request, Response, StashId, StashLevel, Tensor,
    TensorError, WireDtype,
};

use crate::hop::{HopConnection, HopError, RequestPrompts};
use crate::peers::Measurement;
use crate::sequence::Flow;
use crate::tables::PromptTables;

/// A micro-batch in front of one span.
pub(crate) struct HopInput<'a> {
    pub(crate) layout: PassLayout,
    pub(crate) flow: &'a Flow,
    pub(crate) tables: Option<&'a Arc<PromptTables>>,
    pub(crate) hidden: usize,
    pub(crate) dtype: WireDtype,
    pub(crate) patience: Duration,
}

/// What a backward has besides the forward's input.
pub(crate) struct BackwardInput<'a> {
    pub(crate) stash: Option<StashId>,
    pub(crate) grad: &'a Flow,
    pub(crate) text_grad: bool,
}

impl HopInput<'_> {
    /// Runs the span; returns its output and what was kept for the backward.
    pub(crate) async fn forward(
        &self,
        connection: &HopConnection,
        stash: Option<StashId>,
    ) -> Result<(Flow, StashLevel, Measurement), HopError> {
        let request = Request::Forward(ForwardRequest {
            layout: self.layout.clone(),
            prompts: PromptSource::Inline,
            stash,
            reply_dtype: self.dtype,
            deadline_ms: self.deadline_ms(),
        });
        let started = Instant::now();
        let (response, tensors) = self.ask(connection, &request, || self.inputs(), self.prompts()).await?;
        let Response::Forward(reply) = response else { return Err(wrong_kind()) };
        let layout = &self.layout;
        let mut tensors = Answer(tensors.into_iter());
        let text = tensors.next("the text's output", &[layout.output_rows(), self.hidden])?;
        let prefix = [layout.prefix_rows(), self.hidden];
        let prefix = layout.returns_prefix().then(|| tensors.next("the prefix's output", &prefix)).transpose()?;
        tensors.end()?;
        let measured = Measurement {
            row_blocks: (layout.tokens() + layout.prefix_rows()) * layout.span.len(),
            elapsed: started.elapsed(),
            computed: Duration::from_micros(u64::from(reply.compute_us)),
        };
        Ok((Flow { text: text.into(), prefix }, reply.stash, measured))
    }

    /// Runs the span backward; returns the gradients of its flow and of its prompts.
    pub(crate) async fn backward(
        &self,
        connection: &HopConnection,
        input: BackwardInput<'_>,
    ) -> Result<(Flow, Option<Vec<f32>>), HopError> {
        let BackwardInput { stash, grad, text_grad } = input;
        let layout = &self.layout;
        let tensors = || {
            let mut tensors = if stash.is_none() { self.inputs() } else { Vec::new() };
            tensors.push(self.text(&grad.text));
            if layout.returns_prefix() {
                // Blocks behind this span may have left no gradient on the prefix.
                let zeros = || vec![0.0; layout.prefix_rows() * self.hidden];
                tensors.push(self.prefix(&grad.prefix.clone().unwrap_or_else(zeros)));
            }
            tensors
        };
        let request = Request::Backward(BackwardRequest {
            layout: layout.clone(),
            prompts: PromptSource::Inline,
            stash,
            text_grad,
            reply_dtype: self.dtype,
            deadline_ms: self.deadline_ms(),
        });
        let prompts = self.prompts().filter(|_| stash.is_none());
        let (response, tensors) = self.ask(connection, &request, tensors, prompts).await?;
        let Response::Backward(_) = response else { return Err(wrong_kind()) };
        let mut tensors = Answer(tensors.into_iter());
        let text = [layout.tokens(), self.hidden];
        let text = text_grad.then(|| tensors.next("the text's gradient", &text)).transpose()?;
        let prefix = [layout.prefix_rows(), self.hidden];
        let prefix = layout.carries_prefix().then(|| tensors.next("the prefix's gradient", &prefix)).transpose()?;
        let prompts = [layout.span.len(), layout.prefix_rows(), self.hidden];
        let prompts = layout.has_prompts().then(|| tensors.next("the prompts' gradient", &prompts)).transpose()?;
        tensors.end()?;
        Ok((Flow { text: text.unwrap_or_default().into(), prefix }, prompts))
    }

    fn inputs(&self) -> Vec<Tensor> {
        let layout = &self.layout;
        let mut tensors = vec![self.text(&self.flow.text)];
        if let Some(prefix) = self.flow.prefix.as_ref().filter(|_| layout.carries_prefix()) {
            tensors.push(self.prefix(prefix));
        }
        tensors
    }

    /// The prompts, which belong behind text and prefix.
    fn prompts(&self) -> Option<RequestPrompts> {
        let layout = &self.layout;
        let tables = self.tables.filter(|_| layout.has_prompts())?.clone();
        Some(RequestPrompts { tables, span: layout.span, place: 1 + usize::from(layout.carries_prefix()) })
    }

    /// Sends a request. A server that has lost the prompts is sent them once more.
    async fn ask(
        &self,
        connection: &HopConnection,
        request: &Request,
        tensors: impl Fn() -> Vec<Tensor>,
        prompts: Option<RequestPrompts>,
    ) -> Result<(Response, Vec<Tensor>), HopError> {
        let answer = connection.request(request.clone(), tensors(), prompts.clone(), self.patience).await;
        match answer {
            Err(HopError::Refused(Refusal::PromptsGone)) if prompts.is_some() => {
                connection.request(request.clone(), tensors(), prompts, self.patience).await
            }
            answer => answer,
        }
    }

    fn text(&self, values: &[f32]) -> Tensor {
        Tensor::from_f32(self.dtype, &[values.len() / self.hidden, self.hidden], values)
    }

    /// A prefix is small, shared by all examples and trained: always at full precision.
    fn prefix(&self, values: &[f32]) -> Tensor {
        Tensor::from_f32(WireDtype::F32, &[self.layout.prefix_rows(), self.hidden], values)
    }

    fn deadline_ms(&self) -> u32 {
        u32::try_from(self.patience.as_millis()).unwrap_or(u32::MAX)
    }
}

fn wrong_kind() -> HopError {
    HopError::BadReply("an answer to another question".into())
}

struct Answer(std::vec::IntoIter<Tensor>);

impl Answer {
    fn next(&mut self, what: &'static str, shape: &[usize]) -> Result<Vec<f32>, HopError> {
        let tensor = self.0.next().ok_or_else(|| HopError::BadReply(format!("{what} is missing")))?;
        tensor.to_f32(what, shape).map_err(|error: TensorError| HopError::BadReply(error.to_string()))
    }

    fn end(mut self) -> Result<(), HopError> {
        match self.0.next() {
            None => Ok(()),
            Some(_) => Err(HopError::BadReply("more tensors than the answer has".into())),
        }
    }
}
