//! One stream to one server: many requests under way, each answered once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::io::{AsyncReadExt, ReadHalf, WriteHalf};
use petals_protocol::{
    Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Limits, ModelId, Refusal, Request, Response, ServerInfo,
    StashId, Tensor,
};
use petals_swarm::{DirectoryEntry, OpenError, PeerStream, SwarmHandle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

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
    /// The answer breaks the protocol: wrong kind, wrong shapes, values that are not finite.
    #[error("unusable answer: {0}")]
    BadReply(String),
}

/// Bytes that crossed a client's streams, both directions, and the requests they belonged to.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
    requests: AtomicU64,
}

/// Frames that crossed a client's streams so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct TrafficCount {
    /// Bytes of frames sent.
    pub sent: u64,
    /// Bytes of frames received.
    pub received: u64,
    /// Requests answered.
    pub requests: u64,
}

impl Traffic {
    /// The counts so far.
    pub(crate) fn count(&self) -> TrafficCount {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficCount { sent: read(&self.sent), received: read(&self.received), requests: read(&self.requests) }
    }
}

type Answer = Frame<Response>;
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;
type Outgoing = (u64, Request, Vec<Tensor>);

/// An open stream. Dropping it closes the stream and drops every stash it left on the server.
#[derive(Debug)]
pub(crate) struct HopConnection {
    pub(crate) info: ServerInfo,
    pub(crate) limits: Limits,
    outbox: mpsc::Sender<Outgoing>,
    pending: Pending,
    next: AtomicU64,
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
        let (read, write) = stream.split();
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let pending = Pending::default();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (writes, reads) =
                (write_requests(write, queue, traffic.clone()), read_answers(read, pending.clone(), traffic));
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
            outbox,
            pending,
            next: AtomicU64::new(0),
            _tasks: tasks,
        };
        let (response, _) = connection.request(Request::Hello { model: model.clone() }, Vec::new(), patience).await?;
        let Response::Welcome(welcome) = response else {
            return Err(HopError::BadReply("the server did not return the greeting".into()));
        };
        connection.info = welcome.server_info().map_err(|error| HopError::BadReply(error.to_string()))?;
        connection.limits = welcome.limits;
        Ok(connection)
    }

    /// Sends a request and waits for its answer. Refusals come back as [`HopError::Refused`].
    pub(crate) async fn request(
        &self,
        request: Request,
        tensors: Vec<Tensor>,
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
        let _guard = PendingGuard { pending: &self.pending, id };
        let exchange = async {
            self.outbox.send((id, request, tensors)).await.map_err(|_| HopError::Lost)?;
            answer.await.map_err(|_| HopError::Lost)
        };
        let frame = timeout(patience, exchange).await.map_err(|_| HopError::Timeout(patience))??;
        match frame.message {
            Response::Refused(refusal) => Err(HopError::Refused(refusal)),
            response => Ok((response, frame.tensors)),
        }
    }

    /// Tells the server to drop a stash, if the stream has room for the message now; it expires anyway.
    pub(crate) fn forget(&self, stash: StashId) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let _ = self.outbox.try_send((id, Request::Forget { stash }, Vec::new()));
    }

    /// Whether the stream can still be used.
    pub(crate) fn is_open(&self) -> bool {
        !self.outbox.is_closed()
    }
}

/// Removes the entry of a request whose caller gave up.
struct PendingGuard<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        lock(self.pending).remove(&self.id);
    }
}

/// Every structure here is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_requests(write: WriteHalf<PeerStream>, mut queue: mpsc::Receiver<Outgoing>, traffic: Arc<Traffic>) {
    let mut writer = FrameWriter::new(write, FrameKind::Request);
    while let Some((id, request, tensors)) = queue.recv().await {
        let before = writer.bytes_written();
        if writer.write(id, &request, &tensors).await.is_err() {
            return;
        }
        traffic.sent.fetch_add(writer.bytes_written() - before, Ordering::Relaxed);
    }
}

async fn read_answers(read: ReadHalf<PeerStream>, pending: Pending, traffic: Arc<Traffic>) {
    let mut reader = FrameReader::new(read, FrameKind::Response, FrameLimits::default());
    loop {
        let before = reader.bytes_read();
        match reader.read::<Response>().await {
            Ok(frame) => {
                traffic.received.fetch_add(reader.bytes_read() - before, Ordering::Relaxed);
                traffic.requests.fetch_add(1, Ordering::Relaxed);
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
