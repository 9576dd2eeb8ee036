//! One stream to one server: many requests under way, each answered once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::io::{AsyncReadExt, ReadHalf, WriteHalf};
use petals_protocol::{
    Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Limits, ModelId, PromptSource, Refusal, Request, Response,
    ServerInfo, StashId, Tensor,
};
use petals_swarm::{DirectoryEntry, OpenError, PeerId, PeerStream, StreamPath, SwarmHandle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

mod prompts;

pub(crate) use prompts::RequestPrompts;
use prompts::SentPrompts;

/// Requests that wait for the writer. More only take memory: the stream itself is the bottleneck.
const OUTBOX: usize = 8;

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
    /// The answer breaks the protocol: wrong kind, wrong shapes, values that are not finite.
    #[error("unusable answer: {0}")]
    BadReply(String),
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

    fn answered(&self, peer: PeerId, response: &Response, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
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

type Answer = Frame<Response>;
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A request that waits for its turn.
#[derive(Debug)]
struct Outgoing {
    id: u64,
    request: Request,
    tensors: Vec<Tensor>,
    prompts: Option<RequestPrompts>,
}

/// An open stream. Dropping it closes the stream and drops every stash it left on the server.
#[derive(Debug)]
pub(crate) struct HopConnection {
    pub(crate) info: ServerInfo,
    pub(crate) limits: Limits,
    path: StreamPath,
    outbox: mpsc::Sender<Outgoing>,
    sent_prompts: Arc<Mutex<SentPrompts>>,
    pending: Pending,
    next: AtomicU64,
    heard: Arc<Mutex<Instant>>,
    _tasks: JoinSet<()>,
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
        let path = stream.path();
        let (read, write) = stream.split();
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let (pending, sent_prompts) = (Pending::default(), Arc::<Mutex<SentPrompts>>::default());
        let heard = Arc::new(Mutex::new(Instant::now()));
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let writes = write_requests(write, queue, sent_prompts.clone(), traffic.clone());
            let reads = read_answers(read, server.peer, pending.clone(), traffic, heard.clone());
            let pending = pending.clone();
            async move {
                // The end of one direction is the end of both: a stream that can only be written to answers nothing.
                tokio::select! {
                    () = writes => {}
                    () = reads => {}
                }
                // Whoever waits learns at once that nothing will come.
                lock(&pending).clear();
            }
        });
        let mut connection = Self {
            info: server.info.clone(),
            limits: Limits { max_rows: 0, max_body: 0, max_in_flight: 0 },
            path,
            outbox,
            sent_prompts,
            pending,
            next: AtomicU64::new(0),
            heard,
            _tasks: tasks,
        };
        let (response, _) =
            connection.request(Request::Hello { model: model.clone() }, Vec::new(), None, patience).await?;
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
    /// `prompts` are not among the tensors: they are added if the server does not have them yet. After a refusal with
    /// [`Refusal::PromptsGone`] the same request brings them with it.
    pub(crate) async fn request(
        &self,
        request: Request,
        tensors: Vec<Tensor>,
        prompts: Option<RequestPrompts>,
        patience: Duration,
    ) -> Result<(Response, Vec<Tensor>), HopError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        lock(&self.pending).insert(id, reply);
        // The stream may have ended before the insertion; then nobody clears the entry any more.
        if !self.is_open() {
            lock(&self.pending).remove(&id);
            return Err(HopError::Lost);
        }
        let mut guard = PendingGuard { connection: self, id, sent: false };
        let named = prompts.as_ref().map(RequestPrompts::id);
        let exchange = async {
            self.outbox.send(Outgoing { id, request, tensors, prompts }).await.map_err(|_| HopError::Lost)?;
            guard.sent = true;
            answer.await.map_err(|_| HopError::Lost)
        };
        let frame = timeout(patience, exchange).await.map_err(|_| HopError::Timeout(patience))??;
        match frame.message {
            Response::Refused(refusal) => {
                if let Some(named) = named.filter(|_| refusal == Refusal::PromptsGone) {
                    lock(&self.sent_prompts).gone(named);
                }
                Err(HopError::Refused(refusal))
            }
            response => Ok((response, frame.tensors)),
        }
    }

    /// Tells the server to drop a stash, if the stream has room for the message now; it expires anyway.
    pub(crate) fn forget(&self, stash: StashId) {
        self.notify(Request::Forget { stash });
    }

    /// Sends a request that has no answer, behind those that wait.
    pub(crate) fn notify(&self, request: Request) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let notice = Outgoing { id, request, tensors: Vec::new(), prompts: None };
        if let Err(mpsc::error::TrySendError::Full(notice)) = self.outbox.try_send(notice)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let outbox = self.outbox.clone();
            runtime.spawn(async move { outbox.send(notice).await });
        }
    }

    /// Whether new work should go through a new stream: this one takes the way through a relay, and there is a direct
    /// connection by now. What was stashed here stays usable.
    pub(crate) fn is_outdated(&self) -> bool {
        self.path.is_outdated()
    }

    /// When the last answer came.
    pub(crate) fn last_heard(&self) -> Instant {
        *lock(&self.heard)
    }

    /// Requests without an answer so far.
    pub(crate) fn under_way(&self) -> usize {
        lock(&self.pending).len()
    }

    /// Whether the stream can still be used.
    pub(crate) fn is_open(&self) -> bool {
        !self.outbox.is_closed()
    }
}

/// Removes the entry of a request whose caller gave up, and lets the server do so too.
struct PendingGuard<'a> {
    connection: &'a HopConnection,
    id: u64,
    sent: bool,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        let unanswered = lock(&self.connection.pending).remove(&self.id).is_some();
        if unanswered && self.sent {
            self.connection.notify(Request::Cancel { request: self.id });
        }
    }
}

/// Every structure here is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_requests(
    write: WriteHalf<PeerStream>,
    mut queue: mpsc::Receiver<Outgoing>,
    sent_prompts: Arc<Mutex<SentPrompts>>,
    traffic: Arc<Traffic>,
) {
    let mut writer = FrameWriter::new(write, FrameKind::Request);
    while let Some(Outgoing { id, mut request, mut tensors, prompts }) = queue.recv().await {
        if let Some(prompts) = prompts {
            let source = lock(&sent_prompts).source(prompts.id(), prompts.span);
            if !matches!(source, PromptSource::Kept(_)) {
                tensors.insert(prompts.place.min(tensors.len()), prompts.tensor());
            }
            set_source(&mut request, source);
        }
        let before = writer.bytes_written();
        if writer.write(id, &request, &tensors).await.is_err() {
            return;
        }
        traffic.sent.fetch_add(writer.bytes_written() - before, Ordering::Relaxed);
    }
}

fn set_source(request: &mut Request, source: PromptSource) {
    match request {
        Request::Forward(forward) => forward.prompts = source,
        Request::Backward(backward) => backward.prompts = source,
        Request::Step(step) => step.forward.prompts = source,
        _ => {}
    }
}

async fn read_answers(
    read: ReadHalf<PeerStream>,
    peer: PeerId,
    pending: Pending,
    traffic: Arc<Traffic>,
    heard: Arc<Mutex<Instant>>,
) {
    let mut reader = FrameReader::new(read, FrameKind::Response, FrameLimits::default());
    loop {
        let before = reader.bytes_read();
        match reader.read::<Response>().await {
            Ok(frame) => {
                *lock(&heard) = Instant::now();
                traffic.answered(peer, &frame.message, reader.bytes_read() - before);
                if let Some(waiting) = lock(&pending).remove(&frame.id) {
                    let _ = waiting.send(frame);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "stream to a server ended");
                return;
            }
        }
    }
}
