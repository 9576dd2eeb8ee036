//! Forward and backward through a chain of servers, as if the blocks were here.
//!
//! A failed span alone is routed anew (perhaps over several servers) and replayed; the result of a pass does not depend
//! on who computed it. For that the client keeps the inputs it knows until their backward is done; those that went from
//! server to server in a chain are found out by running forward again from the last known one.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use petals_protocol::{Injection, ModelId, PassLayout, SessionId, Span, WeightChange, WireDtype};
use petals_swarm::{PeerId, SwarmHandle};
use tokio::sync::mpsc;

use crate::adapter::tables::PromptTables;
use crate::planner::{Exclusion, Hop, Planner, Route, RouteRules};
use crate::servers::accepted::Accepted;
use crate::servers::exchange::{Ends, Flow, HopInput};
use crate::servers::hop::{HopConnection, HopError, ServerWork, TrafficCount};
use crate::servers::local::LocalBlocks;
use crate::servers::peers::{Measurement, PassSize};
use crate::servers::reputation::Reputation;
use crate::servers::view::SwarmView;
use crate::servers::weights::KnownWeights;

mod backward;
pub(crate) mod chain;
mod copies;
mod error;
mod event;
mod explain;
mod forward;
mod hedge;
mod local;
mod prefix;
mod recover;
mod relays;
mod routes;
mod sizes;
mod trace;
mod trials;
mod verify;

pub use copies::ServedWeights;
pub use error::SequenceError;
pub use event::SwarmEvent;
pub use explain::{ExplainedRoute, ExplainedServer, Explanation, Verdict};
use hedge::Hedges;
pub use relays::RelayMode;
use relays::Relays;
pub(crate) use routes::Purpose;
use routes::Routes;
use sizes::Sizes;
pub use trace::{HopTiming, Trace};
use trials::Trials;
pub use verify::Verification;
use verify::Verifier;

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
    /// What the weights of the model's blocks must be. Default: what most servers have, which is never mixed with anything else.
    pub weights: Option<KnownWeights>,
    /// Dtypes in which servers may compute; empty for all, with [`Self::verify`] for all but int4. Default: empty.
    pub server_dtypes: Vec<String>,
    /// The first blocks, if this client runs them itself: no server is asked for them. Default: none.
    pub local: Option<Arc<LocalBlocks>>,
    /// File in which servers that gave wrong results are remembered for the next run. Default: none.
    pub reputation: Option<PathBuf>,
    /// Which servers may run what. Default: every one what it holds.
    pub rules: RouteRules,
    /// Routes that the micro-batches of a step are spread over at most. Default 4.
    pub routes: usize,
    /// Shortest time after which a silent server is raced by another one that holds its blocks; one that is usually slow gets
    /// more. Default 1 s.
    pub hedge_after: Duration,
    /// Servers of which nothing is known that are tried out at a time for a block that several hold; 0 for none. Default 8.
    pub trials: usize,
    /// Part of the spans, 0 to 1, that another server computes again. With any, every hop goes through this client, whatever
    /// [`Self::relay`] says: servers cannot tell what is checked. Default 0.
    pub verify: f64,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            give_up_after: Duration::from_secs(600),
            wire_dtype: WireDtype::F32,
            relay: RelayMode::default(),
            weights: None,
            server_dtypes: Vec::new(),
            local: None,
            reputation: None,
            rules: RouteRules::default(),
            routes: 4,
            hedge_after: Duration::from_secs(1),
            trials: 8,
            verify: 0.0,
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
    /// What is in front of the text and beside the weights, if anything.
    pub tables: Option<Arc<PromptTables>>,
}

impl PassInput {
    pub(crate) fn rows(&self) -> usize {
        let tokens: usize = self.lengths.iter().map(|&n| n as usize).sum();
        tokens + self.tables.as_ref().map_or(0, |tables| tables.shape().prefix_len)
    }
}

/// Gradients of everything trainable below the head.
#[derive(Debug, Clone, Default)]
pub struct PassGradients {
    /// Of the carried prefix at block 0, `[prefix_len, hidden]`; `None` if the injection replaces it.
    pub prefix: Option<Vec<f32>>,
    /// Of the tables of each span, `[span, block_values]`; together every block once.
    pub tables: Vec<(Span, Vec<f32>)>,
    /// How long each hop took, in the order of the backward.
    pub timings: Vec<(Hop, HopTiming)>,
}

/// All blocks of a model, run by whoever serves them.
#[derive(Debug)]
pub struct RemoteSequence {
    view: Arc<SwarmView>,
    /// All of the model.
    blocks: Span,
    /// Those of them that servers are asked for.
    served: Span,
    hidden: usize,
    config: SequenceConfig,
    relays: Relays,
    routes: Routes,
    hedges: Hedges,
    trials: Trials,
    verifier: Verifier,
    sizes: Sizes,
    next_name: AtomicU64,
    events: Option<mpsc::Sender<SwarmEvent>>,
}

impl RemoteSequence {
    /// The blocks `blocks` of `model`, whose hidden states have `hidden` values.
    pub fn new(swarm: SwarmHandle, model: ModelId, blocks: Span, hidden: usize, mut config: SequenceConfig) -> Self {
        if config.verify > 0.0 {
            config.relay = RelayMode::Star;
        }
        let behind = config.local.as_ref().and_then(|local| Span::new(local.span().end(), blocks.end()).ok());
        let served = behind.unwrap_or(blocks);
        let accepted = Accepted::new(&config.server_dtypes, config.verify > 0.0);
        Self {
            view: Arc::new(SwarmView::new(
                swarm,
                model,
                served,
                config.weights.as_ref(),
                accepted,
                config.rules.clone(),
                config.reputation.clone().map(Reputation::new),
            )),
            blocks,
            served,
            hidden,
            config,
            relays: Relays::default(),
            routes: Routes::default(),
            hedges: Hedges::default(),
            trials: Trials::default(),
            verifier: Verifier::default(),
            sizes: Sizes::default(),
            next_name: AtomicU64::new(1),
            events: None,
        }
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
        let candidates = self.candidates(self.pass_size(rows), self.config.relay, &HashSet::new(), Exclusion::Rejected);
        let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
        planner.fastest(self.served).map_err(|missing| SequenceError::Missing { missing, waited: Duration::ZERO })
    }

    /// A pass of `rows` rows, all of which travel.
    pub(crate) fn pass_size(&self, rows: usize) -> PassSize {
        let bytes = self.config.wire_dtype.byte_len(rows.saturating_mul(self.hidden));
        PassSize { rows, bytes: bytes.unwrap_or(usize::MAX) }
    }

    fn pass_of(&self, input: &PassInput) -> PassSize {
        self.pass_size(input.rows())
    }

    /// The blocks that the sequence is made of.
    pub fn blocks(&self) -> Span {
        self.blocks
    }

    /// Those of them that servers are asked for: all but the local ones.
    pub(crate) fn served(&self) -> Span {
        self.served
    }

    /// Width of the hidden states.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    pub(crate) fn config(&self) -> &SequenceConfig {
        &self.config
    }

    /// A stream to a server, opened if there is none.
    pub(crate) async fn connection(&self, peer: PeerId) -> Result<Arc<HopConnection>, HopError> {
        self.view.connection(peer, self.config.request_timeout).await
    }

    /// Whether these hops make one chain.
    pub(crate) fn is_chain(&self, hops: &[Hop]) -> bool {
        hops.len() > 1 && self.relays.run(hops, self.config.relay) == hops.len()
    }

    /// Notes that a server did its work.
    pub(crate) fn succeeded(&self, peer: PeerId, measured: Measurement) {
        self.view.succeeded(peer, measured);
    }

    /// Notes how long a chain of servers took, of which each says for itself what it took.
    pub(crate) fn chained(&self, hops: &[(PeerId, Measurement)], waited: Duration) {
        self.view.peers().chained(hops, waited);
    }

    /// Notes how long a server took; what takes much longer is late.
    pub(crate) fn waited(&self, peer: PeerId, measured: Measurement) {
        self.view.peers().waited(peer, measured.rows, measured.elapsed);
    }

    /// A name that no other session or stash of this client has, with a salt.
    pub(crate) fn session_id(&self, salt: u32) -> SessionId {
        SessionId::salted(salt, self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    fn tell(&self, event: SwarmEvent) {
        if let Some(events) = &self.events {
            let _ = events.try_send(event);
        }
    }

    fn layout(&self, input: &PassInput, span: Span) -> PassLayout {
        let last = span.end() == self.blocks.end();
        let tables = input.tables.as_deref();
        PassLayout {
            span,
            lengths: input.lengths.clone(),
            prefix_len: tables.map_or(0, |tables| tables.shape().prefix_len as u32),
            injection: tables.map_or(Injection::None, |tables| tables.shape().injection),
            weights: tables.map_or(WeightChange::None, |tables| tables.shape().weights),
            read_rows: if last { Some(input.read_rows.clone().unwrap_or_else(|| all_rows(input))) } else { None },
        }
    }

    fn hop_input<'a>(&self, input: &'a PassInput, hop: Hop, flow: Option<&'a Flow>, ends: Ends) -> HopInput<'a> {
        HopInput {
            layout: self.layout(input, hop.span),
            flow,
            ends,
            tables: input.tables.as_ref(),
            hidden: self.hidden,
            dtype: self.config.wire_dtype,
            patience: self.config.request_timeout,
        }
    }
}

/// How a pass finds its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) relay: RelayMode,
    /// What the route of a whole pass is for; parts of one take the fastest.
    pub(crate) purpose: Option<Purpose>,
}

impl Way {
    /// Hop by hop, for a part of a pass.
    pub(crate) const STAR: Self = Self { relay: RelayMode::Star, purpose: None };
}

/// The prefix leaves no output on the last span, so its layout always says which rows are read.
fn all_rows(input: &PassInput) -> Vec<u32> {
    (0..input.lengths.iter().sum()).collect()
}
