//! One client's stream: frames in, passes to the executor, frames out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf};
use petals_protocol::{
    Frame, FrameError, FrameKind, FrameLimits, FrameReader, FrameWriter, Limits, Refusal, Request, Response, Tensor,
    Welcome,
};
use petals_swarm::PeerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, NoRoom, PeerBudget, Reserved};
use crate::executor::ExecutorHandle;
use crate::idle_reader::{FrameBoundary, IdleReader};
use crate::prompts::PromptCache;
use crate::request::{self, Hosted};

/// A new stream must say hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream without a request for this long is closed; its client opens another when it needs one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A frame of which nothing arrives for this long will not arrive.
const FRAME_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a reply to leave, plus its size at the slowest link served (100 kB/s).
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_S: u64 = 100_000;
/// Unanswered requests of one stream; then reading pauses, which is backpressure to the client.
const MAX_IN_FLIGHT: u32 = 32;
/// This part of the memory for requests is for prompts that streams keep.
const PROMPTS_PART: u64 = 8;
/// When to ask again if there is no memory for a reply.
const RETRY_WITHOUT_MEMORY_MS: u32 = 100;

/// What all streams of a node share.
#[derive(Debug)]
pub(crate) struct StreamService {
    pub(crate) hosted: Hosted,
    pub(crate) executor: ExecutorHandle,
    /// Bytes of requests and replies that may be in memory.
    memory: Budget,
    /// Bytes of prompts that streams may keep. Apart from the requests' memory, which they would hold for as long as they like.
    prompts: Budget,
    limits: Limits,
    next_stream: AtomicU64,
    /// Once cancelled, new forwards are refused with `Draining`; what runs is finished.
    pub(crate) draining: CancellationToken,
}

impl StreamService {
    pub(crate) fn new(hosted: Hosted, executor: ExecutorHandle, max_rows: u32, memory_bytes: u64) -> Self {
        let prompts = Budget::new(memory_bytes / PROMPTS_PART);
        let memory = Budget::new(memory_bytes - memory_bytes / PROMPTS_PART);
        let hidden_bytes = 4 * hosted.hidden_size as u64;
        // The largest honest frame: text, prefix and their gradients, and a prompt table for each block.
        let frame = u64::from(max_rows) * hidden_bytes * (3 + hosted.info.span.len() as u64);
        // Half of what one peer may hold: a reply is about as large as its request and needs room beside it.
        let max_body = frame.min(FrameLimits::default().max_body).min(memory.peer_bytes() / 2);
        Self {
            hosted,
            executor,
            memory,
            prompts,
            limits: Limits { max_rows, max_body, max_in_flight: MAX_IN_FLIGHT },
            next_stream: AtomicU64::new(0),
            draining: CancellationToken::new(),
        }
    }

    /// Serves one stream until it ends, fails, falls silent or `cancel` fires.
    pub(crate) async fn serve<S>(self: Arc<Self>, peer: PeerId, stream: S, cancel: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        self.executor.open_stream(number);
        let (read, write) = stream.split();
        let (read, boundary) = IdleReader::new(read, IDLE_TIMEOUT, FRAME_IDLE_TIMEOUT);
        let (replies, outbox) = mpsc::channel(MAX_IN_FLIGHT as usize);
        let mut tasks = JoinSet::new();
        tasks.spawn(write_replies(write, outbox));
        let limits = FrameLimits { max_body: self.limits.max_body };
        let mut pump = Pump {
            service: self.clone(),
            peer,
            stream: number,
            reader: FrameReader::new(read, FrameKind::Request, limits),
            boundary,
            memory: self.memory.of(peer),
            prompts: PromptCache::new(self.prompts.of(peer)),
            replies,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT as usize)),
            tasks,
        };
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(()),
            ended = pump.run() => ended,
        };
        match ended {
            Ok(()) | Err(StreamEnd::Frame(FrameError::Closed)) => {
                pump.drain(&cancel).await;
            }
            Err(end) => tracing::debug!(%peer, stream = number, error = %end, "stream ended"),
        }
        self.executor.forget_stream(number);
    }
}

/// Why a stream is not read any further.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("nothing arrived in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("the first request was not a greeting")]
    NoHello,
    #[error("the reply channel is closed")]
    WriterGone,
}

/// A reply on its way out.
struct OutFrame {
    id: u64,
    response: Response,
    tensors: Vec<Tensor>,
    /// Given back once the reply is written: a client that does not read its replies gets no further.
    held: Option<Held>,
}

/// What a request takes from its stream and from the node's memory.
struct Held {
    _slot: OwnedSemaphorePermit,
    _request: Reserved,
    _reply: Option<Reserved>,
}

struct Pump<R> {
    service: Arc<StreamService>,
    peer: PeerId,
    stream: u64,
    reader: FrameReader<R>,
    boundary: FrameBoundary,
    memory: PeerBudget,
    prompts: PromptCache,
    replies: mpsc::Sender<OutFrame>,
    in_flight: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pump<IdleReader<ReadHalf<S>>> {
    async fn run(&mut self) -> Result<(), StreamEnd> {
        self.hello().await?;
        loop {
            let slot = self.in_flight.clone().acquire_owned().await.map_err(|_| StreamEnd::WriterGone)?;
            self.boundary.reached();
            let body = self.reader.next_body_len().await?;
            // While it waits for memory the client's bytes stay in its own send buffer.
            let request = timeout(IDLE_TIMEOUT, self.memory.reserve(body)).await?;
            let request = request.map_err(|_| StreamEnd::WriterGone)?;
            let arrived = Instant::now();
            let frame: Frame<Request> = self.reader.read().await?;
            self.handle(frame, body, arrived, Held { _slot: slot, _request: request, _reply: None }).await?;
            while self.tasks.try_join_next().is_some() {}
        }
    }

    async fn hello(&mut self) -> Result<(), StreamEnd> {
        let frame: Frame<Request> = timeout(HELLO_TIMEOUT, async {
            // A greeting has no tensors; whatever brings some is not one, and no memory is reserved for it.
            if self.reader.next_body_len().await? > 0 {
                return Err(StreamEnd::NoHello);
            }
            Ok(self.reader.read().await?)
        })
        .await??;
        let Request::Hello { model } = frame.message else {
            let refusal = Refusal::BadRequest { what: "the first request must be a hello".into() };
            self.reply(frame.id, refused(refusal), None).await?;
            return Err(StreamEnd::NoHello);
        };
        let hosted = &self.service.hosted;
        let response = if model == hosted.info.model {
            let mut info = hosted.info.clone();
            info.queue_depth = self.service.executor.depth() as u32;
            Response::Welcome(Box::new(Welcome { info: info.to_json(), limits: self.service.limits }))
        } else {
            Response::Refused(Refusal::WrongModel { served: hosted.info.model.clone() })
        };
        self.reply(frame.id, (response, Vec::new()), None).await
    }

    async fn handle(
        &mut self,
        frame: Frame<Request>,
        body: u64,
        arrived: Instant,
        held: Held,
    ) -> Result<(), StreamEnd> {
        let Frame { id, message, tensors } = frame;
        if let Request::Forget { stash } = message {
            self.service.executor.forget(self.stream, stash);
            return Ok(());
        }
        let draining = self.service.draining.is_cancelled();
        let limits = &self.service.limits;
        let asked = request::pass(&self.service.hosted, limits, draining, &mut self.prompts, message, tensors);
        let submitted = asked.and_then(|asked| {
            let room = self.room_for_reply(asked.reply_bytes(), body)?;
            let (peer, stream) = (self.peer, self.stream);
            let deadline = arrived + asked.patience;
            let reply = asked.reply.clone();
            let pass = asked.into_pass(peer, stream, arrived, deadline);
            Ok((self.service.executor.submit(pass)?, reply, room))
        });
        let (result, reply, room) = match submitted {
            Ok(submitted) => submitted,
            Err(refusal) => return self.reply(id, refused(refusal), Some(held)).await,
        };
        let held = Some(Held { _reply: Some(room), ..held });
        let replies = self.replies.clone();
        self.tasks.spawn(async move {
            // A dropped sender means that the deadline passed before the work began: nobody waits for an answer.
            let Ok(outcome) = result.await else { return };
            let (response, tensors) = match outcome {
                Ok(done) => reply.encode(done),
                Err(refusal) => refused(refusal),
            };
            let _ = replies.send(OutFrame { id, response, tensors, held }).await;
        });
        Ok(())
    }

    /// Never waits: who waited here would keep its request's memory from others that wait too.
    fn room_for_reply(&self, bytes: u64, request: u64) -> Result<Reserved, Refusal> {
        self.memory.try_reserve(bytes, request).map_err(|no_room| match no_room {
            NoRoom::Now => Refusal::Busy { retry_after_ms: RETRY_WITHOUT_MEMORY_MS },
            NoRoom::Ever => Refusal::TooLarge {
                what: "the memory of request and reply".into(),
                got: request + bytes,
                limit: self.service.memory.peer_bytes(),
            },
        })
    }

    async fn reply(
        &self,
        id: u64,
        (response, tensors): (Response, Vec<Tensor>),
        held: Option<Held>,
    ) -> Result<(), StreamEnd> {
        self.replies.send(OutFrame { id, response, tensors, held }).await.map_err(|_| StreamEnd::WriterGone)
    }

    /// Lets answers under way leave before the stream is dropped.
    async fn drain(self, cancel: &CancellationToken) {
        let Self { replies, mut tasks, .. } = self;
        drop(replies);
        let finish = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            _ = timeout(REPLY_TIMEOUT, finish) => {}
            () = async { cancel.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => {}
        }
    }
}

fn refused(refusal: Refusal) -> (Response, Vec<Tensor>) {
    (Response::Refused(refusal), Vec::new())
}

async fn write_replies<W: AsyncWrite + Unpin>(write: W, mut outbox: mpsc::Receiver<OutFrame>) {
    let mut writer = FrameWriter::new(write, FrameKind::Response);
    while let Some(OutFrame { id, response, tensors, held }) = outbox.recv().await {
        let bytes: u64 = tensors.iter().map(|t| t.bytes().len() as u64).sum();
        let patience = REPLY_TIMEOUT + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S);
        // A client that does not read its answers is given up, so that they do not pile up in memory.
        match timeout(patience, writer.write(id, &response, &tensors)).await {
            Ok(Ok(())) => drop((tensors, held)),
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let _ = writer.close().await;
}

#[cfg(test)]
mod tests;
