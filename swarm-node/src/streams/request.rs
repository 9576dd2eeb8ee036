//! From a frame to a checked pass, and from its result to a frame.

use std::time::{Duration, Instant};

use petals_model::{InputGrads, OutputGrads};
use petals_protocol::{
    BackwardReply, BackwardRequest, BlockWidths, ForwardReply, ForwardRequest, Handover, LayoutError, Limits,
    NextServer, PassLayout, Refusal, RelayToken, Request, Response, RowSource, RowTarget, StepRequest, TableSource,
    Tensor, TensorError, WireDtype,
};
use petals_swarm::{Party, PeerId};

use super::relay::Next;
use super::tables::TableCache;
use crate::executor::{Done, Inputs, Output, Pass, Tables, Work};
use crate::placement::hosted::Hosted;

/// Longest time a request may ask to wait.
const MAX_PATIENCE: Duration = Duration::from_secs(600);

/// What a pass needs to know of the request it belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) party: Party,
    pub(crate) stream: u64,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
}

/// A request that may be computed.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) layout: PassLayout,
    pub(crate) work: Work,
    pub(crate) patience: Duration,
    pub(crate) reply: ReplyShape,
    /// What the rows are waited for under that [`Self::fill`] puts in; until then they are missing in `work`.
    pub(crate) awaits: Option<RelayToken>,
    /// Where the resulting rows go on to.
    pub(crate) next: Option<Next>,
}

/// What is needed to encode a result.
#[derive(Debug, Clone)]
pub(crate) struct ReplyShape {
    dtype: WireDtype,
    hidden: usize,
    prefix_rows: usize,
    blocks: usize,
    /// Values of each block's tables.
    block_values: usize,
    /// Values that each block has of keys and values of the prefix.
    keys_values: usize,
}

/// A result on its way: the rows that flow on, and what the client gets in any case.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) response: Response,
    pub(crate) rows: Vec<Tensor>,
    pub(crate) rest: Vec<Tensor>,
}

impl Encoded {
    /// Notes in the response that the rows went elsewhere.
    pub(crate) fn passed_on(&mut self, handover: Handover) {
        match &mut self.response {
            Response::Forward(reply) => reply.handover = handover,
            Response::Backward(reply) => reply.handover = handover,
            _ => {}
        }
    }
}

impl Asked {
    /// Checks and puts in the rows that another server sent.
    pub(crate) fn fill(&mut self, tensors: &[Tensor], widths: BlockWidths) -> Result<(), Refusal> {
        let mut tensors = TensorsOf { tensors: tensors.iter(), layout: &self.layout, widths };
        match &mut self.work {
            Work::Forward { inputs, .. } | Work::KeysValues { inputs } | Work::Step { inputs, .. } => {
                (inputs.text, inputs.prefix) = tensors.input_rows()?
            }
            Work::Backward { grads, .. } => *grads = tensors.output_grads()?,
        }
        tensors.end()?;
        self.awaits = None;
        Ok(())
    }

    pub(crate) fn into_pass(self, asker: Asker) -> Pass {
        let Asker { party, stream, arrived, deadline } = asker;
        let rounded = self.reply.dtype == WireDtype::Bf16;
        Pass { party, stream, layout: self.layout, work: self.work, rounded, arrived, deadline }
    }

    /// Bytes of the reply's tensors before they are narrowed to its dtype.
    pub(crate) fn reply_bytes(&self) -> u64 {
        let Self { layout, work, .. } = self;
        let prefix = layout.prefix_rows();
        let when = |held: bool, rows: usize| if held { rows } else { 0 };
        let output = layout.output_rows() + when(layout.returns_prefix(), prefix);
        let (rows, tables) = match work {
            Work::Forward { .. } | Work::Step { .. } => (output, 0),
            Work::KeysValues { .. } => (output, layout.span.len() * self.reply.keys_values),
            Work::Backward { text_grad, .. } => {
                let rows = when(*text_grad, layout.tokens()) + when(layout.carries_prefix(), prefix);
                (rows, layout.span.len() * self.reply.block_values)
            }
        };
        4 * (rows as u64 * self.reply.hidden as u64 + tables as u64)
    }
}

/// Checks a request against what is hosted and decodes its tensors. Nothing from a stranger gets past this unchecked.
/// `tables` are what the stream has kept.
pub(crate) fn pass(
    hosted: &Hosted,
    limits: &Limits,
    tables: &mut TableCache,
    request: Request,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    match request {
        Request::Forward(request) => forward(hosted, limits, tables, request, tensors),
        Request::KeysValues(request) => keys_values(hosted, limits, tables, request, tensors),
        Request::Step(request) => step(hosted, limits, tables, *request, tensors),
        Request::Backward(request) => backward(hosted, limits, tables, request, tensors),
        _ => Err(Refusal::BadRequest { what: "this request has no place here".into() }),
    }
}

fn forward(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut TableCache,
    request: ForwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let layout = &request.layout;
    hosted.admit(layout.span, false)?;
    check_layout(hosted, limits, layout, layout.validate())?;
    rows(hosted, kept, request, tensors)
}

/// A forward of which the prefix's keys and values are wanted.
fn keys_values(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut TableCache,
    request: ForwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    if request.layout.prefix_len == 0 || request.stash.is_some() {
        let what = "keys and values are those of a prefix, and such a request keeps no stash";
        return Err(Refusal::BadRequest { what: what.into() });
    }
    let asked = forward(hosted, limits, kept, request, tensors)?;
    let work = match asked.work {
        Work::Forward { inputs, .. } => Work::KeysValues { inputs },
        other => other,
    };
    Ok(Asked { work, ..asked })
}

/// New rows of a session.
fn step(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut TableCache,
    request: StepRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let layout = &request.forward.layout;
    hosted.admit(layout.span, false)?;
    check_layout(hosted, limits, layout, layout.validate_step())?;
    request.validate().map_err(|error| Refusal::BadRequest { what: error.to_string() })?;
    let StepRequest { session, forward, starts, order, open } = request;
    let asked = rows(hosted, kept, forward, tensors)?;
    let work = match asked.work {
        Work::Forward { inputs, .. } => Work::Step { inputs, session, starts, order, open },
        other => other,
    };
    Ok(Asked { work, ..asked })
}

/// Decodes what enters a span whose layout has been checked.
fn rows(
    hosted: &Hosted,
    kept: &mut TableCache,
    request: ForwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let ForwardRequest { layout, tables, stash, input, output, reply_dtype, deadline_ms } = request;
    let next = next(output, Some(layout.span.end()))?;
    let mut tensors = TensorsOf { tensors: tensors.iter(), layout: &layout, widths: hosted.widths };
    let awaits = awaits(input);
    let (text, prefix) = if awaits.is_none() { tensors.input_rows()? } else { (Vec::new(), None) };
    let inputs = Inputs { text, prefix, tables: tensors.tables(tables, kept)? };
    tensors.end()?;
    let reply = ReplyShape::new(hosted, &layout, reply_dtype);
    Ok(Asked { work: Work::Forward { inputs, stash }, patience: patience(deadline_ms), layout, reply, awaits, next })
}

fn backward(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut TableCache,
    request: BackwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let BackwardRequest { layout, tables, stash, text_grad, grads, output, reply_dtype, deadline_ms } = request;
    hosted.admit(layout.span, stash.is_some())?;
    check_layout(hosted, limits, &layout, layout.validate())?;
    let next = next(output, layout.span.start().checked_sub(1))?;
    if next.is_some() && !text_grad {
        return Err(Refusal::BadRequest { what: "a gradient is to be passed on that is not wanted".into() });
    }
    let mut tensors = TensorsOf { tensors: tensors.iter(), layout: &layout, widths: hosted.widths };
    let inputs = if stash.is_none() { Some(tensors.inputs(tables, kept)?) } else { None };
    let awaits = awaits(grads);
    let grads = if awaits.is_none() { tensors.output_grads()? } else { OutputGrads { text: Vec::new(), prefix: None } };
    tensors.end()?;
    let reply = ReplyShape::new(hosted, &layout, reply_dtype);
    let work = Work::Backward { inputs, stash, grads, text_grad };
    Ok(Asked { work, patience: patience(deadline_ms), layout, reply, awaits, next })
}

fn awaits(source: RowSource) -> Option<RelayToken> {
    match source {
        RowSource::Inline => None,
        RowSource::Relay(token) => Some(token),
    }
}

/// The server of `block` that rows go on to.
fn next(target: RowTarget, block: Option<u32>) -> Result<Option<Next>, Refusal> {
    let RowTarget::Relay(NextServer { peer, token }) = target else { return Ok(None) };
    let peer = PeerId::from_bytes(&peer);
    let peer = peer.map_err(|_| Refusal::BadRequest { what: "the next server's name is no peer id".into() })?;
    let block = block.ok_or_else(|| Refusal::BadRequest { what: "there is no block in front of block 0".into() })?;
    Ok(Some(Next { peer, token, block }))
}

fn patience(deadline_ms: u32) -> Duration {
    Duration::from_millis(u64::from(deadline_ms)).min(MAX_PATIENCE)
}

fn check_layout(
    hosted: &Hosted,
    limits: &Limits,
    layout: &PassLayout,
    valid: Result<(), LayoutError>,
) -> Result<(), Refusal> {
    valid.map_err(|error| Refusal::BadRequest { what: error.to_string() })?;
    let rows = (layout.tokens() + layout.prefix_rows()) as u64;
    if rows > u64::from(limits.max_rows) {
        let limit = u64::from(limits.max_rows);
        return Err(Refusal::TooLarge { what: "the number of rows".into(), got: rows, limit });
    }
    let adapter = 4 * (layout.span.len() as u64).saturating_mul(layout.block_values(hosted.widths) as u64);
    if adapter > limits.max_adapter {
        let limit = limits.max_adapter;
        return Err(Refusal::TooLarge { what: "the adapter's tables for these blocks".into(), got: adapter, limit });
    }
    Ok(())
}

struct TensorsOf<'a> {
    tensors: std::slice::Iter<'a, Tensor>,
    layout: &'a PassLayout,
    widths: BlockWidths,
}

impl TensorsOf<'_> {
    fn inputs(&mut self, tables: TableSource, kept: &mut TableCache) -> Result<Inputs, Refusal> {
        let (text, prefix) = self.input_rows()?;
        Ok(Inputs { text, prefix, tables: self.tables(tables, kept)? })
    }

    /// Text and prefix.
    fn input_rows(&mut self) -> Result<(Vec<f32>, Option<Vec<f32>>), Refusal> {
        let (layout, hidden) = (self.layout, self.widths.hidden);
        let text = self.next("the text's hidden states", &[layout.tokens(), hidden])?;
        let prefix = [layout.prefix_rows(), hidden];
        let prefix = layout.carries_prefix().then(|| self.next("the prefix", &prefix)).transpose()?;
        Ok((text, prefix))
    }

    fn tables(&mut self, source: TableSource, kept: &mut TableCache) -> Result<Option<Tables>, Refusal> {
        let layout = self.layout;
        if !layout.has_tables() {
            return Ok(None);
        }
        if let TableSource::Kept(id) = source {
            return kept.get(id, layout).map(Some);
        }
        let values = self.next("the tables", &[layout.span.len(), layout.block_values(self.widths)])?;
        Ok(Some(match source {
            TableSource::Keep(id) => kept.keep(id, layout, values),
            _ => Tables::new(values),
        }))
    }

    fn output_grads(&mut self) -> Result<OutputGrads, Refusal> {
        let (layout, hidden) = (self.layout, self.widths.hidden);
        let text = self.next("the text's output gradient", &[layout.output_rows(), hidden])?;
        let prefix = [layout.prefix_rows(), hidden];
        let prefix = layout.returns_prefix().then(|| self.next("the prefix's output gradient", &prefix)).transpose()?;
        Ok(OutputGrads { text, prefix })
    }

    fn next(&mut self, what: &'static str, shape: &[usize]) -> Result<Vec<f32>, Refusal> {
        let missing = || Refusal::BadShape { what: format!("{what} is missing") };
        self.tensors.next().ok_or_else(missing)?.to_f32(what, shape).map_err(|error| match error {
            TensorError::NotFinite { .. } => Refusal::NotFinite { what: error.to_string() },
            _ => Refusal::BadShape { what: error.to_string() },
        })
    }

    fn end(&mut self) -> Result<(), Refusal> {
        match self.tensors.next() {
            None => Ok(()),
            Some(_) => Err(Refusal::BadShape { what: "there are more tensors than the request has".into() }),
        }
    }
}

impl ReplyShape {
    fn new(hosted: &Hosted, layout: &PassLayout, dtype: WireDtype) -> Self {
        let (prefix_rows, blocks) = (layout.prefix_rows(), layout.span.len());
        Self {
            dtype,
            hidden: hosted.widths.hidden,
            prefix_rows,
            blocks,
            block_values: layout.block_values(hosted.widths),
            keys_values: prefix_rows * 2 * hosted.widths.key,
        }
    }

    pub(crate) fn encode(&self, done: Done) -> Encoded {
        let (queue_us, compute_us, passes) = (micros(done.queued), micros(done.computed), done.passes);
        let handover = Handover::default();
        match done.output {
            Output::Forward { text, prefix, stash, keys_values } => {
                let reply = ForwardReply { stash, passes, queue_us, compute_us, handover };
                let rest = self.of_blocks(keys_values, self.keys_values);
                Encoded { response: Response::Forward(reply), rows: self.rows(Some(text), prefix), rest }
            }
            Output::Backward(InputGrads { text, prefix, tables }) => {
                let reply = BackwardReply { passes, queue_us, compute_us, handover };
                let (rows, rest) = (self.rows(text, prefix), self.of_blocks(tables, self.block_values));
                Encoded { response: Response::Backward(reply), rows, rest }
            }
        }
    }

    /// What each block has so many values of. Not rows of hidden states, and so never worth less than full precision.
    fn of_blocks(&self, values: Option<Vec<f32>>, of_block: usize) -> Vec<Tensor> {
        let shape = [self.blocks, of_block];
        values.map(|values| Tensor::from_f32(WireDtype::F32, &shape, &values)).into_iter().collect()
    }

    fn rows(&self, text: Option<Vec<f32>>, prefix: Option<Vec<f32>>) -> Vec<Tensor> {
        let tensors = [text.map(|rows| self.text(&rows)), prefix.map(|rows| self.prefix(&rows))];
        tensors.into_iter().flatten().collect()
    }

    fn text(&self, values: &[f32]) -> Tensor {
        Tensor::from_f32(self.dtype, &[values.len() / self.hidden, self.hidden], values)
    }

    /// A prefix is a few rows that every example shares: never worth less than full precision.
    fn prefix(&self, values: &[f32]) -> Tensor {
        Tensor::from_f32(WireDtype::F32, &[self.prefix_rows, self.hidden], values)
    }
}

/// Microseconds as they are told.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
