//! Asking over a block stream: many requests under way, each answered once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use petals_protocol::{Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Request, Response, Tensor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests that wait for the writer. More only take memory: the stream itself is the bottleneck.
const OUTBOX: usize = 8;

/// Why a request brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nothing came back in time.
    #[error("no answer within {0:.1?}")]
    Timeout(Duration),
    /// The connection broke.
    #[error("the connection was lost")]
    Lost,
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Frame<Response>>>>>;
type Outgoing = (u64, Request, Vec<Tensor>);

/// The asking end of a stream. Dropping it closes the stream.
#[derive(Debug)]
pub struct RequestStream {
    outbox: mpsc::Sender<Outgoing>,
    pending: Pending,
    next: AtomicU64,
    _tasks: JoinSet<()>,
}

impl RequestStream {
    /// Takes over a stream on which nothing was said yet. Must be called within a tokio runtime.
    pub fn new<S>(stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (read, write) = stream.split();
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let pending = Pending::default();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (writes, reads) = (write_requests(write, queue), read_answers(read, pending.clone()));
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
        Self { outbox, pending, next: AtomicU64::new(0), _tasks: tasks }
    }

    /// Sends a request and waits for its answer. Dropping the future gives the request up and tells the other end.
    ///
    /// # Errors
    /// [`RequestError`]. A refusal is an answer.
    pub async fn request(
        &self,
        request: Request,
        tensors: Vec<Tensor>,
        patience: Duration,
    ) -> Result<(Response, Vec<Tensor>), RequestError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        lock(&self.pending).insert(id, reply);
        // The stream may have ended before the insertion; then nobody clears the entry any more.
        if !self.is_open() {
            lock(&self.pending).remove(&id);
            return Err(RequestError::Lost);
        }
        let mut waiting = Waiting { stream: self, id, sent: false };
        let exchange = async {
            self.outbox.send((id, request, tensors)).await.map_err(|_| RequestError::Lost)?;
            waiting.sent = true;
            answer.await.map_err(|_| RequestError::Lost)
        };
        let frame = timeout(patience, exchange).await.map_err(|_| RequestError::Timeout(patience))??;
        Ok((frame.message, frame.tensors))
    }

    /// Sends a request that has no answer, if the stream has room for it now.
    pub fn notify(&self, request: Request) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let _ = self.outbox.try_send((id, request, Vec::new()));
    }

    /// Whether the stream can still be used.
    pub fn is_open(&self) -> bool {
        !self.outbox.is_closed()
    }
}

/// A request that was not answered yet.
struct Waiting<'a> {
    stream: &'a RequestStream,
    id: u64,
    sent: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let unanswered = lock(&self.stream.pending).remove(&self.id).is_some();
        if unanswered && self.sent {
            self.stream.notify(Request::Cancel { request: self.id });
        }
    }
}

/// The map is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_requests<W>(write: W, mut queue: mpsc::Receiver<Outgoing>)
where
    W: AsyncWrite + Unpin,
{
    let mut writer = FrameWriter::new(write, FrameKind::Request);
    while let Some((id, request, tensors)) = queue.recv().await {
        if writer.write(id, &request, &tensors).await.is_err() {
            return;
        }
    }
}

async fn read_answers<R: AsyncRead + Unpin>(read: R, pending: Pending) {
    let mut reader = FrameReader::new(read, FrameKind::Response, FrameLimits::default());
    loop {
        match reader.read::<Response>().await {
            Ok(frame) => {
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
