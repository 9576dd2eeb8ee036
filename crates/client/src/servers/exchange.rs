//! Requests of one hop: tensors out, checked tensors in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_protocol::{
    BackwardRequest, ForwardRequest, Handover, PassLayout, Refusal, Request, Response, RowSource, RowTarget, SessionId,
    SessionOpen, StashId, StashLevel, StepRequest, TableSource, Tensor, TensorError, WireDtype, WireVersion,
};

use super::hop::{HopConnection, HopError, RequestTables};
use super::peers::{Measurement, believed_handover};
use crate::adapter::tables::PromptTables;

/// Hidden states between two blocks, or their gradient.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) text: Arc<Vec<f32>>,
    pub(crate) prefix: Option<Vec<f32>>,
}

/// A micro-batch in front of one span.
pub(crate) struct HopInput<'a> {
    pub(crate) layout: PassLayout,
    /// What enters the span, where it is known and needed here.
    pub(crate) flow: Option<&'a Flow>,
    /// Where the rows come from and go to.
    pub(crate) ends: Ends,
    pub(crate) tables: Option<&'a Arc<PromptTables>>,
    pub(crate) hidden: usize,
    pub(crate) dtype: WireDtype,
    pub(crate) patience: Duration,
}

/// Where the rows of a request come from and go to; by default from and to this client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends {
    pub(crate) source: RowSource,
    pub(crate) target: RowTarget,
}

/// What a backward has besides the forward's input.
pub(crate) struct BackwardInput<'a> {
    pub(crate) stash: Option<StashId>,
    /// Gradients of the output, unless another server has them.
    pub(crate) grad: Option<&'a Flow>,
    pub(crate) text_grad: bool,
}

/// What a step of a session has besides the forward of its rows; see [`StepRequest`].
pub(crate) struct StepPart {
    pub(crate) session: SessionId,
    pub(crate) starts: Vec<u32>,
    pub(crate) order: Option<Vec<u32>>,
    pub(crate) open: Option<SessionOpen>,
}

/// The answer to a forward.
pub(crate) struct Forwarded {
    /// What leaves the span, unless it went on to another server.
    pub(crate) output: Option<Flow>,
    pub(crate) stashed: bool,
    /// Keys and values of the prefix, `[span, prefix_len * 2 * key]`, if they were asked for.
    pub(crate) keys_values: Option<Vec<f32>>,
    pub(crate) measured: Measurement,
}

/// The answer to a backward.
pub(crate) struct Backwarded {
    /// Gradients of the input, unless they went on to another server.
    pub(crate) grad: Option<Flow>,
    pub(crate) tables: Option<Vec<f32>>,
    pub(crate) measured: Measurement,
}

impl HopInput<'_> {
    /// Runs the span.
    pub(crate) async fn forward(
        &self,
        connection: &HopConnection,
        stash: Option<StashId>,
    ) -> Result<Forwarded, HopError> {
        self.run(connection, Request::Forward(self.forward_request(stash)), None).await
    }

    /// Runs the span, for the keys and values of its prefix too, of which each row has `of_row` in every block.
    pub(crate) async fn keys_values(&self, connection: &HopConnection, of_row: usize) -> Result<Forwarded, HopError> {
        connection.knows("keys and values of a prefix", WireVersion::KEYS_VALUES)?;
        self.run(connection, Request::KeysValues(self.forward_request(None)), Some(of_row)).await
    }

    /// Runs new rows of a session.
    pub(crate) async fn step(&self, connection: &HopConnection, part: StepPart) -> Result<Forwarded, HopError> {
        let StepPart { session, starts, order, open } = part;
        let step = StepRequest { session, forward: self.forward_request(None), starts, order, open };
        self.run(connection, Request::Step(Box::new(step)), None).await
    }

    fn forward_request(&self, stash: Option<StashId>) -> ForwardRequest {
        ForwardRequest {
            layout: self.layout.clone(),
            tables: TableSource::Inline,
            stash,
            input: self.ends.source,
            output: self.ends.target.clone(),
            reply_dtype: self.dtype,
            deadline_ms: self.deadline_ms(),
        }
    }

    async fn run(
        &self,
        connection: &HopConnection,
        request: Request,
        keys_values: Option<usize>,
    ) -> Result<Forwarded, HopError> {
        let rows = self.ends.source == RowSource::Inline;
        let started = Instant::now();
        let (layout, own) = (&self.layout, keys_values.unwrap_or_default());
        let prefix = if layout.returns_prefix() { layout.prefix_rows() } else { 0 };
        let most = self.most(layout.output_rows(), prefix, layout.span.len() * layout.prefix_rows() * own);
        let (response, tensors) =
            self.ask(connection, &request, || self.inputs(rows), self.request_tables(rows), most).await?;
        let Response::Forward(reply) = response else { return Err(wrong_kind()) };
        let layout = &self.layout;
        let mut tensors = Answer(tensors.into_iter());
        let output = match self.ends.target {
            RowTarget::Relay(_) => None,
            RowTarget::Reply => {
                let text = tensors.next("the text's output", &[layout.output_rows(), self.hidden])?;
                let prefix = [layout.prefix_rows(), self.hidden];
                let prefix =
                    layout.returns_prefix().then(|| tensors.next("the prefix's output", &prefix)).transpose()?;
                Some(Flow { text: text.into(), prefix })
            }
        };
        let of_block = |of_row: usize| [layout.span.len(), layout.prefix_rows() * of_row];
        let keys_values = keys_values.map(|of_row| tensors.next("the prefix's keys and values", &of_block(of_row)));
        let keys_values = keys_values.transpose()?;
        tensors.end()?;
        let measured = self.measured(started.elapsed(), reply.queue_us, reply.compute_us, reply.handover);
        Ok(Forwarded { output, stashed: reply.stash != StashLevel::None, keys_values, measured })
    }

    /// Runs the span backward.
    pub(crate) async fn backward(
        &self,
        connection: &HopConnection,
        input: BackwardInput<'_>,
    ) -> Result<Backwarded, HopError> {
        let BackwardInput { stash, grad, text_grad } = input;
        let layout = &self.layout;
        let tensors = || {
            let mut tensors = if stash.is_none() { self.inputs(true)? } else { Vec::new() };
            if self.ends.source == RowSource::Inline {
                let grad = grad.ok_or_else(|| unknown("the output gradient"))?;
                tensors.push(self.text(&grad.text));
                if layout.returns_prefix() {
                    // Blocks behind this span may have left no gradient on the prefix.
                    let zeros = || vec![0.0; layout.prefix_rows() * self.hidden];
                    tensors.push(self.prefix(&grad.prefix.clone().unwrap_or_else(zeros)));
                }
            }
            Ok(tensors)
        };
        let request = Request::Backward(BackwardRequest {
            layout: layout.clone(),
            tables: TableSource::Inline,
            stash,
            text_grad,
            grads: self.ends.source,
            output: self.ends.target.clone(),
            reply_dtype: self.dtype,
            deadline_ms: self.deadline_ms(),
        });
        let tables = self.request_tables(true).filter(|_| stash.is_none());
        let started = Instant::now();
        let text = if text_grad { layout.tokens() } else { 0 };
        let prefix = if layout.carries_prefix() { layout.prefix_rows() } else { 0 };
        let own = self.tables.filter(|_| layout.has_tables()).map_or(0, |tables| tables.block_values());
        let most = self.most(text, prefix, layout.span.len() * own);
        let (response, tensors) = self.ask(connection, &request, tensors, tables, most).await?;
        let Response::Backward(reply) = response else { return Err(wrong_kind()) };
        let mut tensors = Answer(tensors.into_iter());
        let grad = match self.ends.target {
            RowTarget::Relay(_) => None,
            RowTarget::Reply => {
                let text = [layout.tokens(), self.hidden];
                let text = text_grad.then(|| tensors.next("the text's gradient", &text)).transpose()?;
                let prefix = [layout.prefix_rows(), self.hidden];
                let prefix =
                    layout.carries_prefix().then(|| tensors.next("the prefix's gradient", &prefix)).transpose()?;
                Some(Flow { text: text.unwrap_or_default().into(), prefix })
            }
        };
        let own = self.tables.filter(|_| layout.has_tables());
        let shape = own.map(|tables| [layout.span.len(), tables.block_values()]);
        let of_tables = shape.map(|shape| tensors.next("the tables' gradient", &shape)).transpose()?;
        tensors.end()?;
        let measured = self.measured(started.elapsed(), reply.queue_us, reply.compute_us, reply.handover);
        Ok(Backwarded { grad, tables: of_tables, measured })
    }

    /// The forward's tensors without the tables: text and prefix, if they come from here.
    fn inputs(&self, rows: bool) -> Result<Vec<Tensor>, HopError> {
        let layout = &self.layout;
        let mut tensors = Vec::new();
        if rows {
            let flow = self.flow.ok_or_else(|| unknown("the span's input"))?;
            tensors.push(self.text(&flow.text));
            if let Some(prefix) = flow.prefix.as_ref().filter(|_| layout.carries_prefix()) {
                tensors.push(self.prefix(prefix));
            }
        }
        Ok(tensors)
    }

    /// The tables, which belong behind text and prefix if those travel with the request.
    fn request_tables(&self, rows: bool) -> Option<RequestTables> {
        let layout = &self.layout;
        let tables = self.tables.filter(|_| layout.has_tables())?.clone();
        let place = if rows { 1 + usize::from(layout.carries_prefix()) } else { 0 };
        Some(RequestTables { tables, span: layout.span, place })
    }

    /// Sends a request. A server that has lost the tables is sent them once more.
    async fn ask(
        &self,
        connection: &HopConnection,
        request: &Request,
        tensors: impl Fn() -> Result<Vec<Tensor>, HopError>,
        tables: Option<RequestTables>,
        most: u64,
    ) -> Result<(Response, Vec<Tensor>), HopError> {
        let answer = connection.request(request.clone(), tensors()?, tables.clone(), most, self.patience).await;
        match answer {
            Err(HopError::Refused(Refusal::TablesGone)) if tables.is_some() => {
                connection.request(request.clone(), tensors()?, tables, most, self.patience).await
            }
            answer => answer,
        }
    }

    /// Bytes that an answer may have: of text rows, unless they go to another server, of prefix rows, which go where those go, and of `own` values that come
    /// here in any case.
    fn most(&self, text: usize, prefix: usize, own: usize) -> u64 {
        let (text, prefix) = if self.ends.target == RowTarget::Reply { (text, prefix) } else { (0, 0) };
        // Each tensor by itself: some have a few bytes beside their values.
        let of_text = self.dtype.byte_len(text.saturating_mul(self.hidden)).unwrap_or(usize::MAX);
        let of_others = prefix.saturating_mul(self.hidden).saturating_add(own).saturating_mul(4);
        of_text.saturating_add(of_others) as u64
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

    fn measured(&self, elapsed: Duration, queue_us: u32, compute_us: u32, handover: Handover) -> Measurement {
        let micros = |us: u32| Duration::from_micros(u64::from(us));
        let (queued, computed) = (micros(queue_us), micros(compute_us));
        let layout = &self.layout;
        let rows = layout.tokens() + layout.prefix_rows();
        let handed =
            believed_handover(micros(handover.us), self.dtype.byte_len(rows * self.hidden).unwrap_or_default());
        // In a chain the answer also waits for the servers in front, which is not this one's doing.
        let (elapsed, bytes) = match (self.ends.source, &self.ends.target) {
            (RowSource::Inline, RowTarget::Reply) => {
                let values = (layout.tokens() + layout.output_rows()) * self.hidden;
                (elapsed, self.dtype.byte_len(values).unwrap_or_default())
            }
            _ => (elapsed.min(queued + computed + micros(handover.us)), 0),
        };
        Measurement { rows, blocks: layout.span.len(), bytes, elapsed, computed, queued, handed }
    }
}

fn wrong_kind() -> HopError {
    HopError::BadReply("an answer to another question".into())
}

/// Callers know what they have; this one did not.
fn unknown(what: &str) -> HopError {
    HopError::BadReply(format!("{what} is not known here"))
}

struct Answer(std::vec::IntoIter<Tensor>);

impl Answer {
    fn next(&mut self, what: &'static str, shape: &[usize]) -> Result<Vec<f32>, HopError> {
        let tensor = self.0.next().ok_or_else(|| HopError::BadReply(format!("{what} is missing")))?;
        tensor.to_f32(what, shape).map_err(|error: TensorError| match error {
            TensorError::NotFinite { .. } => HopError::NotFinite(error.to_string()),
            error => HopError::BadReply(error.to_string()),
        })
    }

    fn end(mut self) -> Result<(), HopError> {
        match self.0.next() {
            None => Ok(()),
            Some(_) => Err(HopError::BadReply("more tensors than the answer has".into())),
        }
    }
}
