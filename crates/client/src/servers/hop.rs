//! One stream to one server: many requests under way, each answered once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_protocol::{
    Limits, ModelId, Refusal, Request, Response, ServerInfo, StashId, TableSource, Tensor, WireVersion,
};
use petals_swarm::{DirectoryEntry, Exchange, OpenError, PeerId, RequestError, RequestStream, StreamPath, SwarmHandle};

use crate::lock::lock;
use crate::planner::Exclusion;

mod tables;

pub(crate) use tables::RequestTables;
use tables::SentTables;

/// Why a request to a server brought no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HopError {
    /// No stream could be opened.
    #[error("cannot reach the server")]
    Open(#[source] OpenError),
    /// Nothing came back in time.
    #[error("no answer within {0:.1?}")]
    Timeout(Duration),
    /// The connection broke.
    #[error("the connection was lost")]
    Lost,
    /// The server declined.
    #[error("refused: {0}")]
    Refused(#[source] Refusal),
    /// It is much later than usual, and there are others to ask.
    #[error("no sign of life within {0:.1?}")]
    Slow(Duration),
    /// Other servers got something else.
    #[error("wrong results: {0}")]
    Untrue(String),
    /// It greets with other weights than it announced.
    #[error("{0}")]
    Weights(Exclusion),
    /// Other servers, of which none is trusted, got something else.
    #[error("results that others call wrong: {0}")]
    Outvoted(String),
    /// The server does not know what is asked of it yet.
    #[error(
        "{what} need wire version {needed}, and the server speaks {spoken}: its operator should upgrade petals-node there"
    )]
    OldServer {
        /// What is asked.
        what: &'static str,
        /// The first version that has it.
        needed: WireVersion,
        /// The version agreed on.
        spoken: WireVersion,
    },
    /// The answer has values that are not finite, which may be the fault of who gave the server its own.
    #[error("unusable answer: {0}")]
    NotFinite(String),
    /// The answer breaks the protocol: wrong kind, wrong shapes, values that cannot be.
    #[error("unusable answer: {0}")]
    BadReply(String),
}

impl From<RequestError> for HopError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Timeout(patience) => Self::Timeout(patience),
            error @ RequestError::Unasked { .. } => Self::BadReply(error.to_string()),
            _ => Self::Lost,
        }
    }
}

/// Bytes that crossed a client's streams, both directions, the requests they belonged to, and what those cost.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
    requests: AtomicU64,
    block_forwards: AtomicU64,
    block_backwards: AtomicU64,
    servers: Mutex<BTreeMap<PeerId, ServerWork>>,
}

/// What one server says that it did for this client so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerWork {
    /// Passes answered.
    pub passes: u64,
    /// Time of their computation.
    pub computed: Duration,
    /// Time they waited for others, after they had arrived.
    pub queued: Duration,
}

/// What crossed a client's streams, and what servers computed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct TrafficCount {
    /// Bytes of frames sent.
    pub sent: u64,
    /// Bytes of frames received.
    pub received: u64,
    /// Requests answered.
    pub requests: u64,
    /// Blocks that servers say they ran forward, repetitions included: one for each micro-batch that a block sees.
    pub block_forwards: u64,
    /// Blocks that servers say they ran backward.
    pub block_backwards: u64,
}

impl TrafficCount {
    /// What was added since an earlier count.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(earlier.sent),
            received: self.received.saturating_sub(earlier.received),
            requests: self.requests.saturating_sub(earlier.requests),
            block_forwards: self.block_forwards.saturating_sub(earlier.block_forwards),
            block_backwards: self.block_backwards.saturating_sub(earlier.block_backwards),
        }
    }
}

impl ServerWork {
    /// What was added to the `earlier` work of the same server.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            passes: self.passes.saturating_sub(earlier.passes),
            computed: self.computed.saturating_sub(earlier.computed),
            queued: self.queued.saturating_sub(earlier.queued),
        }
    }
}

impl Traffic {
    /// The counts so far.
    pub(crate) fn count(&self) -> TrafficCount {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficCount {
            sent: read(&self.sent),
            received: read(&self.received),
            requests: read(&self.requests),
            block_forwards: read(&self.block_forwards),
            block_backwards: read(&self.block_backwards),
        }
    }

    /// What each server did so far.
    pub(crate) fn servers(&self) -> BTreeMap<PeerId, ServerWork> {
        lock(&self.servers).clone()
    }

    fn answered(&self, peer: PeerId, response: &Response) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (passes, queue_us, compute_us) = match response {
            Response::Forward(reply) => (reply.passes, reply.queue_us, reply.compute_us),
            Response::Backward(reply) => (reply.passes, reply.queue_us, reply.compute_us),
            Response::Welcome(_) | Response::Refused(_) | Response::Relayed => return,
        };
        self.block_forwards.fetch_add(passes.forward.into(), Ordering::Relaxed);
        self.block_backwards.fetch_add(passes.backward.into(), Ordering::Relaxed);
        let mut servers = lock(&self.servers);
        let work = servers.entry(peer).or_default();
        work.passes += 1;
        work.computed += Duration::from_micros(compute_us.into());
        work.queued += Duration::from_micros(queue_us.into());
    }
}

/// What goes with the requests of a stream.
#[derive(Debug)]
struct Bookkeeping {
    peer: PeerId,
    traffic: Arc<Traffic>,
    tables: Mutex<SentTables>,
    heard: Mutex<Instant>,
}

impl Exchange for Bookkeeping {
    type Extra = RequestTables;

    fn complete(&self, request: &mut Request, tensors: &mut Vec<Tensor>, tables: RequestTables) {
        let source = lock(&self.tables).source(tables.id(), tables.span);
        if !matches!(source, TableSource::Kept(_)) {
            tensors.insert(tables.place.min(tensors.len()), tables.tensor());
        }
        match request {
            Request::Forward(forward) | Request::KeysValues(forward) => forward.tables = source,
            Request::Backward(backward) => backward.tables = source,
            Request::Step(step) => step.forward.tables = source,
            _ => {}
        }
    }

    fn sent(&self, bytes: u64) {
        self.traffic.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    fn answered(&self, response: &Response, bytes: u64, awaited: bool) {
        self.traffic.received.fetch_add(bytes, Ordering::Relaxed);
        // What nobody waits for is no sign of life, or frames of a few bytes would be.
        if awaited {
            *lock(&self.heard) = Instant::now();
            self.traffic.answered(self.peer, response);
        }
    }
}

/// An open stream. Dropping it closes the stream and drops every stash it left on the server.
#[derive(Debug)]
pub(crate) struct HopConnection {
    pub(crate) info: ServerInfo,
    pub(crate) limits: Limits,
    wire: WireVersion,
    path: StreamPath,
    stream: RequestStream<Bookkeeping>,
    books: Arc<Bookkeeping>,
}

impl HopConnection {
    /// Opens a stream to `server` and exchanges greetings.
    pub(crate) async fn open(
        swarm: &SwarmHandle,
        server: &DirectoryEntry,
        model: &ModelId,
        patience: Duration,
        traffic: Arc<Traffic>,
    ) -> Result<Self, HopError> {
        let stream = swarm.open_stream(server.peer, &server.addresses, patience).await.map_err(HopError::Open)?;
        let (tables, heard) = (Mutex::default(), Mutex::new(Instant::now()));
        let books = Arc::new(Bookkeeping { peer: server.peer, traffic, tables, heard });
        let mut connection = Self {
            info: server.info.clone(),
            limits: Limits { max_rows: 0, max_body: 0, max_in_flight: 0, max_adapter: 0 },
            wire: stream.wire_version().unwrap_or(WireVersion::PASSES),
            path: stream.path(),
            stream: RequestStream::with(stream, books.clone()),
            books,
        };
        let (response, _) =
            connection.request(Request::Hello { model: model.clone() }, Vec::new(), None, 0, patience).await?;
        let Response::Welcome(welcome) = response else {
            return Err(HopError::BadReply("the server did not return the greeting".into()));
        };
        connection.info = welcome.server_info().map_err(|error| HopError::BadReply(error.to_string()))?;
        if connection.info.model != *model {
            return Err(HopError::BadReply("the greeting is of another model".into()));
        }
        connection.limits = welcome.limits;
        Ok(connection)
    }

    /// Sends a request and waits for its answer. Refusals come back as [`HopError::Refused`]. Dropping the future gives
    /// the request up, on the server too.
    ///
    /// The answer's tensors may have at most `most` bytes. `tables` are not among those of the request: they are added if the server does not have them yet. After a refusal with
    /// [`Refusal::TablesGone`] the same request brings them with it.
    pub(crate) async fn request(
        &self,
        request: Request,
        tensors: Vec<Tensor>,
        tables: Option<RequestTables>,
        most: u64,
        patience: Duration,
    ) -> Result<(Response, Vec<Tensor>), HopError> {
        let named = tables.as_ref().map(RequestTables::id);
        match self.stream.request_with(request, tensors, tables, most, patience).await? {
            (Response::Refused(refusal), _) => {
                if let Some(named) = named.filter(|_| refusal == Refusal::TablesGone) {
                    lock(&self.books.tables).gone(named);
                }
                Err(HopError::Refused(refusal))
            }
            answer => Ok(answer),
        }
    }

    /// Whether the server knows what was added in version `needed`.
    pub(crate) fn knows(&self, what: &'static str, needed: WireVersion) -> Result<(), HopError> {
        if self.wire < needed { Err(HopError::OldServer { what, needed, spoken: self.wire }) } else { Ok(()) }
    }

    /// Tells the server to drop a stash.
    pub(crate) fn forget(&self, stash: StashId) {
        self.notify(Request::Forget { stash });
    }

    /// Sends a request that has no answer, behind those that wait.
    pub(crate) fn notify(&self, request: Request) {
        self.stream.notify(request);
    }

    /// Whether new work should go through a new stream: this one takes the way through a relay, and there is a direct
    /// connection by now. What was stashed here stays usable.
    pub(crate) fn is_outdated(&self) -> bool {
        self.path.is_outdated()
    }

    /// When the last answer came.
    pub(crate) fn last_heard(&self) -> Instant {
        *lock(&self.books.heard)
    }

    /// Requests without an answer so far.
    pub(crate) fn under_way(&self) -> usize {
        self.stream.under_way()
    }

    /// Whether the stream can still be used.
    pub(crate) fn is_open(&self) -> bool {
        self.stream.is_open()
    }
}
