//! Forward and backward through a chain of servers, as if the blocks were here.
//!
//! A failed span alone is routed anew (perhaps over several servers) and replayed; the result of a pass does not depend
//! on who computed it. For that the client keeps the inputs it knows until their backward is done; those that went from
//! server to server in a chain are found out by running forward again from the last known one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use petals_protocol::{Injection, ModelId, PassLayout, Span, WireDtype};
use petals_swarm::{PeerId, SwarmHandle};
use tokio::sync::mpsc;

use crate::exchange::{Ends, HopInput};
use crate::hop::{ServerWork, TrafficCount};
use crate::planner::{Hop, Route, plan};
use crate::tables::PromptTables;
use crate::view::SwarmView;

mod backward;
mod chain;
mod error;
mod event;
mod forward;
mod recover;
mod relays;
mod trace;

pub use error::SequenceError;
pub use event::SwarmEvent;
pub use relays::RelayMode;
use relays::Relays;
pub(crate) use trace::Flow;
pub use trace::{HopTiming, Trace};

/// How patiently and in which precision a [`RemoteSequence`] talks to servers.
#[derive(Debug, Clone)]
pub struct SequenceConfig {
    /// Longest wait for one answer. Default 60 s.
    pub request_timeout: Duration,
    /// How long a pass without any progress is retried before it fails. Default 10 minutes.
    pub give_up_after: Duration,
    /// Dtype of activations and gradients on the wire. Default f32.
    pub wire_dtype: WireDtype,
    /// How a micro-batch goes from one server to the next. Default [`RelayMode::Chain`].
    pub relay: RelayMode,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            give_up_after: Duration::from_secs(600),
            wire_dtype: WireDtype::F32,
            relay: RelayMode::default(),
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
    /// How long each hop took, in the order of the backward.
    pub timings: Vec<(Hop, HopTiming)>,
}

/// All blocks of a model, run by whoever serves them.
#[derive(Debug)]
pub struct RemoteSequence {
    view: SwarmView,
    blocks: Span,
    hidden: usize,
    config: SequenceConfig,
    relays: Relays,
    next_stash: AtomicU64,
    events: Option<mpsc::Sender<SwarmEvent>>,
}

impl RemoteSequence {
    /// The blocks `blocks` of `model`, whose hidden states have `hidden` values.
    pub fn new(swarm: SwarmHandle, model: ModelId, blocks: Span, hidden: usize, config: SequenceConfig) -> Self {
        let view = SwarmView::new(swarm, model, blocks);
        Self { view, blocks, hidden, config, relays: Relays::default(), next_stash: AtomicU64::new(1), events: None }
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

    fn hop_input<'a>(&self, input: &'a PassInput, hop: Hop, flow: Option<&'a Flow>, ends: Ends) -> HopInput<'a> {
        HopInput {
            layout: self.layout(input, hop.span),
            flow,
            ends,
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
