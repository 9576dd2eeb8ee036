//! From a frame to a checked pass, and from its result to a frame.

use std::time::{Duration, Instant};

use petals_model::{InputGrads, OutputGrads};
use petals_protocol::{
    BackwardReply, BackwardRequest, ForwardReply, ForwardRequest, Handover, LayoutError, Limits, NextServer,
    PassLayout, PromptSource, Refusal, RelayToken, Request, Response, RowSource, RowTarget, StepRequest, Tensor,
    TensorError, WireDtype,
};
use petals_swarm::PeerId;

use super::prompts::PromptCache;
use super::relay::Next;
use crate::executor::{Done, Inputs, Output, Pass, Prompts, Work};
use crate::placement::hosted::Hosted;

/// Longest time a request may ask to wait.
const MAX_PATIENCE: Duration = Duration::from_secs(600);

/// What a pass needs to know of the request it belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) peer: PeerId,
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
    pub(crate) fn fill(&mut self, tensors: &[Tensor], hidden: usize) -> Result<(), Refusal> {
        let mut tensors = TensorsOf { tensors: tensors.iter(), layout: &self.layout, hidden };
        match &mut self.work {
            Work::Forward { inputs, .. } | Work::Step { inputs, .. } => {
                (inputs.text, inputs.prefix) = tensors.input_rows()?
            }
            Work::Backward { grads, .. } => *grads = tensors.output_grads()?,
        }
        tensors.end()?;
        self.awaits = None;
        Ok(())
    }

    pub(crate) fn into_pass(self, asker: Asker) -> Pass {
        let Asker { peer, stream, arrived, deadline } = asker;
        Pass { peer, stream, layout: self.layout, work: self.work, arrived, deadline }
    }

    /// Bytes of the reply's tensors before they are narrowed to its dtype.
    pub(crate) fn reply_bytes(&self) -> u64 {
        let Self { layout, work, .. } = self;
        let prefix = layout.prefix_rows();
        let when = |held: bool, rows: usize| if held { rows } else { 0 };
        let rows = match work {
            Work::Forward { .. } | Work::Step { .. } => layout.output_rows() + when(layout.returns_prefix(), prefix),
            Work::Backward { text_grad, .. } => {
                let prompts = when(layout.has_prompts(), layout.span.len() * prefix);
                when(*text_grad, layout.tokens()) + when(layout.carries_prefix(), prefix) + prompts
            }
        };
        4 * rows as u64 * self.reply.hidden as u64
    }
}

/// Checks a request against what is hosted and decodes its tensors. Nothing from a stranger gets past this unchecked.
/// `prompts` are what the stream has kept.
pub(crate) fn pass(
    hosted: &Hosted,
    limits: &Limits,
    prompts: &mut PromptCache,
    request: Request,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    match request {
        Request::Forward(request) => forward(hosted, limits, prompts, request, tensors),
        Request::Step(request) => step(hosted, limits, prompts, *request, tensors),
        Request::Backward(request) => backward(hosted, limits, prompts, request, tensors),
        _ => Err(Refusal::BadRequest { what: "this request has no place here".into() }),
    }
}

fn forward(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut PromptCache,
    request: ForwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let layout = &request.layout;
    hosted.admit(layout.span, false)?;
    check_layout(limits, layout, layout.validate())?;
    rows(hosted, kept, request, tensors)
}

/// New rows of a session.
fn step(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut PromptCache,
    request: StepRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let layout = &request.forward.layout;
    hosted.admit(layout.span, false)?;
    check_layout(limits, layout, layout.validate_step())?;
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
    kept: &mut PromptCache,
    request: ForwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let ForwardRequest { layout, prompts, stash, input, output, reply_dtype, deadline_ms } = request;
    let next = next(output, Some(layout.span.end()))?;
    let mut tensors = TensorsOf { tensors: tensors.iter(), layout: &layout, hidden: hosted.hidden_size };
    let awaits = awaits(input);
    let (text, prefix) = if awaits.is_none() { tensors.input_rows()? } else { (Vec::new(), None) };
    let inputs = Inputs { text, prefix, prompts: tensors.prompts(prompts, kept)? };
    tensors.end()?;
    let reply = ReplyShape::new(hosted, &layout, reply_dtype);
    Ok(Asked { work: Work::Forward { inputs, stash }, patience: patience(deadline_ms), layout, reply, awaits, next })
}

fn backward(
    hosted: &Hosted,
    limits: &Limits,
    kept: &mut PromptCache,
    request: BackwardRequest,
    tensors: Vec<Tensor>,
) -> Result<Asked, Refusal> {
    let BackwardRequest { layout, prompts, stash, text_grad, grads, output, reply_dtype, deadline_ms } = request;
    hosted.admit(layout.span, stash.is_some())?;
    check_layout(limits, &layout, layout.validate())?;
    let next = next(output, layout.span.start().checked_sub(1))?;
    if next.is_some() && !text_grad {
        return Err(Refusal::BadRequest { what: "a gradient is to be passed on that is not wanted".into() });
    }
    let mut tensors = TensorsOf { tensors: tensors.iter(), layout: &layout, hidden: hosted.hidden_size };
    let inputs = if stash.is_none() { Some(tensors.inputs(prompts, kept)?) } else { None };
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

fn check_layout(limits: &Limits, layout: &PassLayout, valid: Result<(), LayoutError>) -> Result<(), Refusal> {
    valid.map_err(|error| Refusal::BadRequest { what: error.to_string() })?;
    let rows = (layout.tokens() + layout.prefix_rows()) as u64;
    if rows > u64::from(limits.max_rows) {
        let limit = u64::from(limits.max_rows);
        return Err(Refusal::TooLarge { what: "the number of rows".into(), got: rows, limit });
    }
    Ok(())
}

struct TensorsOf<'a> {
    tensors: std::slice::Iter<'a, Tensor>,
    layout: &'a PassLayout,
    hidden: usize,
}

impl TensorsOf<'_> {
    fn inputs(&mut self, prompts: PromptSource, kept: &mut PromptCache) -> Result<Inputs, Refusal> {
        let (text, prefix) = self.input_rows()?;
        Ok(Inputs { text, prefix, prompts: self.prompts(prompts, kept)? })
    }

    /// Text and prefix.
    fn input_rows(&mut self) -> Result<(Vec<f32>, Option<Vec<f32>>), Refusal> {
        let (layout, hidden) = (self.layout, self.hidden);
        let text = self.next("the text's hidden states", &[layout.tokens(), hidden])?;
        let prefix = [layout.prefix_rows(), hidden];
        let prefix = layout.carries_prefix().then(|| self.next("the prefix", &prefix)).transpose()?;
        Ok((text, prefix))
    }

    fn prompts(&mut self, source: PromptSource, kept: &mut PromptCache) -> Result<Option<Prompts>, Refusal> {
        let layout = self.layout;
        if !layout.has_prompts() {
            return Ok(None);
        }
        if let PromptSource::Kept(id) = source {
            return kept.get(id, layout).map(Some);
        }
        let values = self.next("the prompts", &[layout.span.len(), layout.prefix_rows(), self.hidden])?;
        Ok(Some(match source {
            PromptSource::Keep(id) => kept.keep(id, layout, values),
            _ => Prompts::new(values),
        }))
    }

    fn output_grads(&mut self) -> Result<OutputGrads, Refusal> {
        let (layout, hidden) = (self.layout, self.hidden);
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
        Self { dtype, hidden: hosted.hidden_size, prefix_rows, blocks }
    }

    pub(crate) fn encode(&self, done: Done) -> Encoded {
        let (queue_us, compute_us, passes) = (micros(done.queued), micros(done.computed), done.passes);
        let handover = Handover::default();
        match done.output {
            Output::Forward { text, prefix, stash } => {
                let reply = ForwardReply { stash, passes, queue_us, compute_us, handover };
                let rows = self.rows(Some(text), prefix);
                Encoded { response: Response::Forward(reply), rows, rest: Vec::new() }
            }
            Output::Backward(InputGrads { text, prefix, prompts }) => {
                let reply = BackwardReply { passes, queue_us, compute_us, handover };
                let prompts = prompts.map(|values| {
                    Tensor::from_f32(WireDtype::F32, &[self.blocks, self.prefix_rows, self.hidden], &values)
                });
                let (rows, rest) = (self.rows(text, prefix), prompts.into_iter().collect());
                Encoded { response: Response::Backward(reply), rows, rest }
            }
        }
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
