//! Forward and backward through a chain of servers, as if the blocks were here.
//!
//! A failed span alone is routed anew (perhaps over several servers) and replayed; the result of a pass does not depend
//! on who computed it. For that the client keeps each hop's input until its backward is done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use petals_protocol::{Injection, ModelId, PassLayout, Refusal, Remedy, Span, StashId, StashLevel, WireDtype};
use petals_swarm::{PeerId, SwarmHandle};
use tokio::sync::mpsc;

use crate::exchange::{BackwardInput, HopInput};
use crate::hop::{HopConnection, HopError, ServerWork, TrafficCount};
use crate::planner::{Hop, MissingBlocks, Route, plan};
use crate::retry::Retry;
use crate::tables::PromptTables;
use crate::view::SwarmView;

mod error;
mod event;

pub use error::SequenceError;
use error::chain;
pub use event::SwarmEvent;

/// A busy server's hint is believed up to this.
const LONGEST_BUSY_WAIT: Duration = Duration::from_secs(5);
/// After so many refusals in a row a busy server is passed over if there is another.
const BUSY_ATTEMPTS: u32 = 3;

/// How patiently and in which precision a [`RemoteSequence`] talks to servers.
#[derive(Debug, Clone)]
pub struct SequenceConfig {
    /// Longest wait for one answer. Default 60 s.
    pub request_timeout: Duration,
    /// How long a pass without any progress is retried before it fails. Default 10 minutes.
    pub give_up_after: Duration,
    /// Dtype of activations and gradients on the wire. Default f32.
    pub wire_dtype: WireDtype,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            give_up_after: Duration::from_secs(600),
            wire_dtype: WireDtype::F32,
        }
    }
}

/// One micro-batch as it enters block 0.
#[derive(Debug, Clone)]
pub struct PassInput {
    /// Tokens of each example.
    pub lengths: Vec<u32>,
    /// Embedded text, packed, `[tokens, hidden]`.
    pub text: Vec<f32>,
    /// Output rows that are read, ascending; `None` for all.
    pub read_rows: Option<Vec<u32>>,
    /// Prompts in front, if any.
    pub prompts: Option<Arc<PromptTables>>,
}

impl PassInput {
    fn rows(&self) -> usize {
        let tokens: usize = self.lengths.iter().map(|&n| n as usize).sum();
        tokens + self.prompts.as_ref().map_or(0, |tables| tables.shape().prefix_len)
    }
}

/// Gradients of everything trainable below the head.
#[derive(Debug, Clone, Default)]
pub struct PassGradients {
    /// Of the carried prefix at block 0, `[prefix_len, hidden]`; `None` if the injection replaces it.
    pub prefix: Option<Vec<f32>>,
    /// Of the prompts of each span, `[span, prefix_len, hidden]`; together every block once.
    pub prompts: Vec<(Span, Vec<f32>)>,
}

/// What a backward needs of its forward. Dropping it lets the servers drop their stashes.
#[derive(Debug)]
pub struct Trace {
    input: Arc<PassInput>,
    hops: Vec<HopRecord>,
}

impl Trace {
    /// The hops that computed the forward.
    pub fn hops(&self) -> impl Iterator<Item = Hop> {
        self.hops.iter().map(|record| record.hop)
    }

    /// How long each hop's forward took, in their order.
    pub fn timings(&self) -> impl Iterator<Item = HopTiming> {
        self.hops.iter().map(|record| record.timing)
    }
}

#[derive(Debug)]
struct HopRecord {
    hop: Hop,
    flow: Flow,
    stash: Option<Stashed>,
    timing: HopTiming,
}

/// Where the time of one hop went. Zero for a hop whose forward was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HopTiming {
    /// From sending the request to having its answer.
    pub elapsed: Duration,
    /// What the server says it computed.
    pub computed: Duration,
}

/// A stash left on a server, dropped there unless it is used.
#[derive(Debug)]
pub(crate) struct Stashed {
    pub(crate) id: StashId,
    pub(crate) connection: Arc<HopConnection>,
    pub(crate) used: bool,
}

impl Drop for Stashed {
    fn drop(&mut self) {
        if !self.used {
            self.connection.forget(self.id);
        }
    }
}

/// Hidden states between two blocks, or their gradient.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) text: Arc<Vec<f32>>,
    pub(crate) prefix: Option<Vec<f32>>,
}

/// All blocks of a model, run by whoever serves them.
#[derive(Debug)]
pub struct RemoteSequence {
    view: SwarmView,
    blocks: Span,
    hidden: usize,
    config: SequenceConfig,
    next_stash: AtomicU64,
    events: Option<mpsc::Sender<SwarmEvent>>,
}

impl RemoteSequence {
    /// The blocks `blocks` of `model`, whose hidden states have `hidden` values.
    pub fn new(swarm: SwarmHandle, model: ModelId, blocks: Span, hidden: usize, config: SequenceConfig) -> Self {
        let view = SwarmView::new(swarm, model, blocks);
        Self { view, blocks, hidden, config, next_stash: AtomicU64::new(1), events: None }
    }

    /// Reports failures and waits to `events`. If its buffer is full, events are dropped.
    #[must_use]
    pub fn with_events(mut self, events: mpsc::Sender<SwarmEvent>) -> Self {
        self.events = Some(events);
        self
    }

    /// Bytes exchanged and blocks run so far.
    pub fn traffic(&self) -> TrafficCount {
        self.view.traffic()
    }

    /// What each server did so far, as it says.
    pub fn work(&self) -> BTreeMap<PeerId, ServerWork> {
        self.view.work()
    }

    /// The servers known at the moment.
    pub fn servers(&self) -> Vec<(PeerId, petals_protocol::ServerInfo)> {
        self.view.servers()
    }

    /// The route that a pass of `rows` rows would take now.
    ///
    /// # Errors
    /// [`SequenceError::Missing`] without waiting if blocks have no holder, [`SequenceError::Lookup`].
    pub async fn route(&self, rows: usize) -> Result<Route, SequenceError> {
        self.view.refresh(Duration::ZERO).await?;
        let candidates = self.view.candidates(rows).await?;
        plan(self.blocks, &candidates).map_err(|missing| SequenceError::Missing { missing, waited: Duration::ZERO })
    }

    /// Runs a micro-batch through all blocks and returns the rows read, `[rows, hidden]`.
    ///
    /// With `keep`, servers are asked to stash what the backward needs.
    ///
    /// # Errors
    /// See [`SequenceError`]; failures of single servers are not errors.
    pub async fn forward(&self, input: PassInput, keep: bool) -> Result<(Vec<f32>, Trace), SequenceError> {
        let input = Arc::new(input);
        let prefix = input.prompts.as_ref().filter(|t| t.carries_prefix()).map(|t| t.input().to_vec());
        let flow = Flow { text: Arc::new(input.text.clone()), prefix };
        let mut trace = Trace { input: input.clone(), hops: Vec::new() };
        let output = self.advance(&input, self.blocks, flow, keep, &mut trace.hops).await?;
        Ok((Arc::unwrap_or_clone(output.text), trace))
    }

    /// Carries the gradient of the rows read, `[rows, hidden]`, back to the prompts.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn backward(&self, mut trace: Trace, grad: Vec<f32>) -> Result<PassGradients, SequenceError> {
        let input = trace.input.clone();
        let mut gradients = PassGradients::default();
        let mut flow = Flow { text: Arc::new(grad), prefix: None };
        let mut retry = Retry::new(self.config.give_up_after);
        while let Some(mut record) = trace.hops.pop() {
            let span = record.hop.span;
            let had_stash = record.stash.is_some();
            match self.backward_hop(&input, &mut record, &flow).await {
                Ok((grads, prompts)) => {
                    gradients.prompts.extend(prompts.map(|prompts| (span, prompts)));
                    flow = grads;
                    retry = Retry::new(self.config.give_up_after);
                }
                Err(HopError::Refused(Refusal::StashGone)) if had_stash => {
                    tracing::debug!(peer = %record.hop.peer, %span, "stash gone, sending the inputs again");
                    trace.hops.push(record);
                }
                Err(error) => {
                    self.recover(&input, record.hop, error, &mut retry).await?;
                    if record.stash.is_some() {
                        // Only busy: the stash is still there.
                        trace.hops.push(record);
                    } else {
                        self.reroute(&input, record, &mut trace.hops).await?;
                    }
                }
            }
        }
        gradients.prefix = flow.prefix;
        Ok(gradients)
    }

    /// Replaces the hop of `record` by hops over the same blocks whose inputs are known.
    async fn reroute(
        &self,
        input: &PassInput,
        record: HopRecord,
        hops: &mut Vec<HopRecord>,
    ) -> Result<(), SequenceError> {
        let span = record.hop.span;
        let route = self.plan(span, input.rows(), &mut Retry::new(self.config.give_up_after)).await?;
        match route.hops.as_slice() {
            // The backward itself will send the inputs.
            [hop] => {
                let (hop, flow, timing) = (*hop, record.flow.clone(), HopTiming::default());
                hops.push(HopRecord { hop, flow, stash: None, timing });
            }
            _ => {
                self.advance(input, span, record.flow.clone(), true, hops).await?;
            }
        }
        Ok(())
    }

    /// Runs `span` forward, hop by hop, until it is done; failed hops are routed anew.
    async fn advance(
        &self,
        input: &PassInput,
        span: Span,
        mut flow: Flow,
        keep: bool,
        records: &mut Vec<HopRecord>,
    ) -> Result<Flow, SequenceError> {
        let mut at = span.start();
        let mut route = VecDeque::new();
        let mut retry = Retry::new(self.config.give_up_after);
        while let Ok(rest) = Span::new(at, span.end()) {
            let Some(hop) = route.pop_front() else {
                route = self.plan(rest, input.rows(), &mut retry).await?.hops.into();
                continue;
            };
            match self.forward_hop(input, hop, &flow, keep).await {
                Ok((output, stash, timing)) => {
                    records.push(HopRecord { hop, flow: std::mem::replace(&mut flow, output), stash, timing });
                    at = hop.span.end();
                    retry = Retry::new(self.config.give_up_after);
                }
                Err(error) => {
                    self.recover(input, hop, error, &mut retry).await?;
                    route.clear();
                }
            }
        }
        Ok(flow)
    }

    /// A route over `span`; waits, visibly, while blocks have no holder.
    async fn plan(&self, span: Span, rows: usize, retry: &mut Retry) -> Result<Route, SequenceError> {
        loop {
            let missing = match self.view.candidates(rows).await {
                Ok(candidates) => match plan(span, &candidates) {
                    Ok(route) => return Ok(route),
                    Err(missing) => missing,
                },
                // Nobody to ask is as good as nobody there, and may pass just as well.
                Err(error) if retry.is_over(Instant::now()) => return Err(error.into()),
                Err(_) => MissingBlocks { spans: vec![span] },
            };
            let Some(wait) = retry.next_wait(Instant::now()) else {
                return Err(SequenceError::Missing { missing, waited: retry.elapsed(Instant::now()) });
            };
            self.tell(SwarmEvent::BlocksMissing { missing, wait, patience_left: retry.left(Instant::now()) });
            tokio::time::sleep(wait).await;
            let _ = self.view.refresh(Duration::ZERO).await;
        }
    }

    /// Decides what a failed request means. `Ok` if the work should be tried again.
    async fn recover(
        &self,
        input: &PassInput,
        hop: Hop,
        error: HopError,
        retry: &mut Retry,
    ) -> Result<(), SequenceError> {
        let Hop { peer, span } = hop;
        let now = Instant::now();
        let mut wait = retry.next_wait(now);
        let busy = matches!(error, HopError::Refused(Refusal::Busy { .. }));
        match &error {
            HopError::Refused(refusal) => match refusal.remedy() {
                Remedy::Stop => {
                    self.view.failed(peer);
                    // One server's word is not enough while others hold the blocks: its limits or its weights may be odd.
                    retry.rejected_by().insert(peer);
                    if !self.has_others(span, input.rows(), retry).await {
                        return Err(SequenceError::Rejected { peer, span, refusal: Box::new(refusal.clone()) });
                    }
                }
                Remedy::RetryThere { after } => {
                    wait = wait.map(|_| after.min(LONGEST_BUSY_WAIT).min(retry.left(now)));
                    if retry.attempts() >= BUSY_ATTEMPTS {
                        self.view.failed(peer);
                    }
                }
                // A stash was lost that nobody named.
                Remedy::Replay => {
                    self.view.failed(peer);
                }
                Remedy::GoElsewhere => {
                    self.view.failed(peer);
                    if !matches!(refusal, Refusal::Internal { .. }) {
                        self.view.forget(peer);
                    }
                }
            },
            _ => {
                self.view.failed(peer);
            }
        }
        let Some(wait) = wait else {
            return Err(SequenceError::Exhausted { span, waited: retry.elapsed(now), last: Box::new(error) });
        };
        if !busy {
            let reason = chain(&error);
            tracing::debug!(%peer, %span, reason, "hop failed");
            self.tell(SwarmEvent::HopFailed { peer, span, reason });
            // Replacements that came after the last lookup are worth knowing now.
            let _ = self.view.refresh(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Whether servers that have not rejected the request hold all of `span`.
    async fn has_others(&self, span: Span, rows: usize, retry: &mut Retry) -> bool {
        let mut candidates = self.view.candidates(rows).await.unwrap_or_default();
        candidates.retain(|candidate| !retry.rejected_by().contains(&candidate.peer));
        plan(span, &candidates).is_ok()
    }

    fn tell(&self, event: SwarmEvent) {
        if let Some(events) = &self.events {
            let _ = events.try_send(event);
        }
    }

    fn layout(&self, input: &PassInput, span: Span) -> PassLayout {
        let last = span.end() == self.blocks.end();
        let tables = input.prompts.as_deref();
        PassLayout {
            span,
            lengths: input.lengths.clone(),
            prefix_len: tables.map_or(0, |tables| tables.shape().prefix_len as u32),
            injection: tables.map_or(Injection::None, |tables| tables.shape().injection),
            read_rows: if last { Some(input.read_rows.clone().unwrap_or_else(|| all_rows(input))) } else { None },
        }
    }

    async fn forward_hop(
        &self,
        input: &PassInput,
        hop: Hop,
        flow: &Flow,
        keep: bool,
    ) -> Result<(Flow, Option<Stashed>, HopTiming), HopError> {
        let connection = self.view.connection(hop.peer, self.config.request_timeout).await?;
        let stash = keep.then(|| StashId(self.next_stash.fetch_add(1, Ordering::Relaxed)));
        let request = self.hop_input(input, hop, flow);
        let (output, level, measured) = request.forward(&connection, stash).await?;
        self.view.succeeded(hop.peer, measured);
        let stash = stash.filter(|_| level != StashLevel::None).map(|id| Stashed { id, connection, used: false });
        Ok((output, stash, HopTiming { elapsed: measured.elapsed, computed: measured.computed }))
    }

    async fn backward_hop(
        &self,
        input: &PassInput,
        record: &mut HopRecord,
        grad: &Flow,
    ) -> Result<(Flow, Option<Vec<f32>>), HopError> {
        let mut stash = record.stash.take().filter(|stash| stash.connection.is_open());
        let connection = match &stash {
            Some(stash) => stash.connection.clone(),
            None => self.view.connection(record.hop.peer, self.config.request_timeout).await?,
        };
        let text_grad = record.hop.span.start() > self.blocks.start();
        let id = stash.as_ref().map(|stash| stash.id);
        let request = self.hop_input(input, record.hop, &record.flow);
        let result = request.backward(&connection, BackwardInput { stash: id, grad, text_grad }).await;
        if matches!(result, Err(HopError::Refused(Refusal::Busy { .. }))) {
            record.stash = stash;
        } else if let Some(stash) = &mut stash {
            stash.used = true;
        }
        result
    }

    fn hop_input<'a>(&self, input: &'a PassInput, hop: Hop, flow: &'a Flow) -> HopInput<'a> {
        HopInput {
            layout: self.layout(input, hop.span),
            flow,
            tables: input.prompts.as_ref(),
            hidden: self.hidden,
            dtype: self.config.wire_dtype,
            patience: self.config.request_timeout,
        }
    }
}

/// The prefix leaves no output on the last span, so its layout always says which rows are read.
fn all_rows(input: &PassInput) -> Vec<u32> {
    (0..input.lengths.iter().sum()).collect()
}
