//! Asking over a block stream: many requests under way, each answered once.

use std::collections::{HashMap, VecDeque};
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

/// Requests that were given up and whose answers may still come; what is sent for others is unasked for.
const GIVEN_UP: usize = 1024;

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
    /// More came than was asked for. The stream is of no further use.
    #[error("an answer of {got} bytes, where at most {most} were asked for")]
    Unasked {
        /// Bytes of the answer's tensors.
        got: u64,
        /// Most that what was asked for takes.
        most: u64,
    },
}

/// What the asking end does beside sending requests and waiting for answers. `()` does nothing.
pub trait Exchange: Send + Sync + 'static {
    /// Goes with a request to the place where it is written.
    type Extra: Send + 'static;

    /// Completes a request just before it is written, in the order of the stream.
    fn complete(&self, request: &mut Request, tensors: &mut Vec<Tensor>, extra: Self::Extra);

    /// `bytes` have been written.
    fn sent(&self, bytes: u64);

    /// An answer of `bytes` bytes has been read. If nobody waits for it, because it was given up or was never asked for, it is no `awaited` one.
    fn answered(&self, response: &Response, bytes: u64, awaited: bool);
}

impl Exchange for () {
    type Extra = ();

    fn complete(&self, _: &mut Request, _: &mut Vec<Tensor>, (): ()) {}

    fn sent(&self, _: u64) {}

    fn answered(&self, _: &Response, _: u64, _: bool) {}
}

type Pending = Arc<Mutex<Awaited>>;
type Answer = Result<Frame<Response>, RequestError>;

/// Requests whose answers may come, with the most bytes of tensors that these may have.
#[derive(Debug, Default)]
struct Awaited {
    waiting: HashMap<u64, (oneshot::Sender<Answer>, u64)>,
    /// Nobody waits for these any more, the oldest in front.
    given_up: VecDeque<(u64, u64)>,
}

impl Awaited {
    /// Most bytes of tensors that the answer to a request may have. One that is not known may have none.
    fn most(&self, id: u64) -> u64 {
        let given_up = || self.given_up.iter().find(|(given_up, _)| *given_up == id).map(|(_, most)| *most);
        self.waiting.get(&id).map(|(_, most)| *most).or_else(given_up).unwrap_or_default()
    }

    /// Who waits for an answer that has come.
    fn take(&mut self, id: u64) -> Option<oneshot::Sender<Answer>> {
        self.given_up.retain(|(given_up, _)| *given_up != id);
        self.waiting.remove(&id).map(|(waiting, _)| waiting)
    }

    /// Nobody waits for an answer any more; whether somebody did.
    fn give_up(&mut self, id: u64) -> bool {
        let Some((_, most)) = self.waiting.remove(&id) else { return false };
        if self.given_up.len() == GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back((id, most));
        true
    }
}

#[derive(Debug)]
struct Outgoing<X> {
    id: u64,
    request: Request,
    tensors: Vec<Tensor>,
    /// Nothing of a request that is not to be completed.
    extra: Option<X>,
}

/// The asking end of a stream. Dropping it closes the stream.
#[derive(Debug)]
pub struct RequestStream<E: Exchange = ()> {
    outbox: mpsc::Sender<Outgoing<E::Extra>>,
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
        Self::with(stream, Arc::new(()))
    }

    /// As [`Self::request_with`], with nothing to complete.
    ///
    /// # Errors
    /// [`RequestError`]. A refusal is an answer.
    pub async fn request(
        &self,
        request: Request,
        tensors: Vec<Tensor>,
        most: u64,
        patience: Duration,
    ) -> Result<(Response, Vec<Tensor>), RequestError> {
        self.request_with(request, tensors, None, most, patience).await
    }
}

impl<E: Exchange> RequestStream<E> {
    /// As [`RequestStream::new`], with what `exchange` does besides.
    pub fn with<S>(stream: S, exchange: Arc<E>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (read, write) = stream.split();
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let pending = Pending::default();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let writes = write_requests(write, queue, exchange.clone());
            let reads = read_answers(read, pending.clone(), exchange);
            let pending = pending.clone();
            async move {
                // The end of one direction is the end of both: a stream that can only be written to answers nothing.
                tokio::select! {
                    () = writes => {}
                    () = reads => {}
                }
                // Whoever waits learns at once that nothing will come.
                lock(&pending).waiting.clear();
            }
        });
        Self { outbox, pending, next: AtomicU64::new(0), _tasks: tasks }
    }

    /// Sends a request and waits for its answer, of which the tensors may have at most `most` bytes: whoever sends more has not been asked for it, and is not
    /// read any further. Dropping the future gives the request up and tells the other end.
    ///
    /// # Errors
    /// [`RequestError`]. A refusal is an answer.
    pub async fn request_with(
        &self,
        request: Request,
        tensors: Vec<Tensor>,
        extra: Option<E::Extra>,
        most: u64,
        patience: Duration,
    ) -> Result<(Response, Vec<Tensor>), RequestError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        lock(&self.pending).waiting.insert(id, (reply, most));
        // The stream may have ended before the insertion; then nobody clears the entry any more.
        if !self.is_open() {
            lock(&self.pending).waiting.remove(&id);
            return Err(RequestError::Lost);
        }
        let mut waiting = Waiting { stream: self, id, sent: false };
        let exchange = async {
            let outgoing = Outgoing { id, request, tensors, extra };
            self.outbox.send(outgoing).await.map_err(|_| RequestError::Lost)?;
            waiting.sent = true;
            answer.await.map_err(|_| RequestError::Lost)?
        };
        let frame = timeout(patience, exchange).await.map_err(|_| RequestError::Timeout(patience))??;
        Ok((frame.message, frame.tensors))
    }

    /// Sends a request that has no answer, behind those that wait.
    pub fn notify(&self, request: Request) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let notice = Outgoing { id, request, tensors: Vec::new(), extra: None };
        if let Err(mpsc::error::TrySendError::Full(notice)) = self.outbox.try_send(notice)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let outbox = self.outbox.clone();
            runtime.spawn(async move { outbox.send(notice).await });
        }
    }

    /// Requests without an answer so far.
    pub fn under_way(&self) -> usize {
        lock(&self.pending).waiting.len()
    }

    /// Whether the stream can still be used.
    pub fn is_open(&self) -> bool {
        !self.outbox.is_closed()
    }
}

/// A request that was not answered yet.
struct Waiting<'a, E: Exchange> {
    stream: &'a RequestStream<E>,
    id: u64,
    sent: bool,
}

impl<E: Exchange> Drop for Waiting<'_, E> {
    fn drop(&mut self) {
        let unanswered = lock(&self.stream.pending).give_up(self.id);
        if unanswered && self.sent {
            self.stream.notify(Request::Cancel { request: self.id });
        }
    }
}

/// The map is changed in single steps, so a panic elsewhere leaves it whole and poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_requests<W, E>(write: W, mut queue: mpsc::Receiver<Outgoing<E::Extra>>, exchange: Arc<E>)
where
    W: AsyncWrite + Unpin,
    E: Exchange,
{
    let mut writer = FrameWriter::new(write, FrameKind::Request);
    while let Some(Outgoing { id, mut request, mut tensors, extra }) = queue.recv().await {
        if let Some(extra) = extra {
            exchange.complete(&mut request, &mut tensors, extra);
        }
        let before = writer.bytes_written();
        if writer.write(id, &request, &tensors).await.is_err() {
            return;
        }
        exchange.sent(writer.bytes_written() - before);
    }
}

async fn read_answers<R: AsyncRead + Unpin>(read: R, pending: Pending, exchange: Arc<impl Exchange>) {
    let mut reader = FrameReader::new(read, FrameKind::Response, FrameLimits::default());
    loop {
        let before = reader.bytes_read();
        let read = async {
            let got = reader.next_body_len().await?;
            let id = reader.next_id().unwrap_or_default();
            let most = lock(&pending).most(id);
            if got > most {
                return Ok(Err((id, RequestError::Unasked { got, most })));
            }
            reader.read::<Response>().await.map(Ok)
        };
        match read.await {
            Ok(Ok(frame)) => {
                let waiting = lock(&pending).take(frame.id);
                exchange.answered(&frame.message, reader.bytes_read() - before, waiting.is_some());
                if let Some(waiting) = waiting {
                    let _ = waiting.send(Ok(frame));
                }
            }
            Ok(Err((id, unasked))) => {
                tracing::debug!(%unasked, "a stream to a server is given up");
                if let Some(waiting) = lock(&pending).take(id) {
                    let _ = waiting.send(Err(unasked));
                }
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "stream to a server ended");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
