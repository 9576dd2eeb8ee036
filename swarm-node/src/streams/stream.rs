//! One client's stream: frames in, passes to the executor, frames out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf};
use petals_protocol::{
    Frame, FrameError, FrameKind, FrameLimits, FrameReader, FrameWriter, Refusal, RelayToken, Request, Response,
    Tensor, Welcome,
};
use petals_swarm::Party;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Job, refused};
use super::arriving::{self, NotArrived};
use super::idle_reader::{Gauge, IdleReader};
use super::request::{self, Asker};
use super::service::{MAX_IN_FLIGHT, StreamService};
use super::tables::TableCache;
use crate::machine::budget::{PartyBudget, Reserved};

/// Bytes of a greeting, which is the name of a model.
const HELLO_BYTES: u64 = 4 << 10;
/// Headers up to this size are not counted in memory: a request that gives something up must not wait for any.
const SMALL_HEADER: u64 = 4 << 10;
/// A new stream must say hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream without a request for this long is closed; its client opens another when it needs one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A frame of which nothing arrives for this long will not arrive.
const FRAME_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a reply to leave, plus its size at the slowest link served (100 kB/s).
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_S: u64 = 100_000;

impl StreamService {
    /// Serves one stream until it ends, fails, falls silent, its connection is `gone` or `cancel` fires. While as many requests wait as a stream may
    /// have, nothing is read of it, and a peer that went away would be found out by none of them.
    pub(crate) async fn serve<S>(
        self: Arc<Self>,
        party: Party,
        stream: S,
        gone: impl Future<Output = ()> + Send,
        cancel: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        self.executor.open_stream(number, party);
        let (read, write) = stream.split();
        let (read, gauge) = IdleReader::new(read, IDLE_TIMEOUT, FRAME_IDLE_TIMEOUT);
        let (replies, outbox) = mpsc::channel(MAX_IN_FLIGHT as usize);
        let mut tasks = JoinSet::new();
        tasks.spawn(write_replies(write, outbox, self.clone(), party));
        let limits = FrameLimits { max_body: self.limits.max_body };
        let mut pump = Pump {
            service: self.clone(),
            party,
            stream: number,
            reader: FrameReader::new(read, FrameKind::Request, limits),
            gauge,
            memory: self.memory.of(party),
            tables: TableCache::new(self.tables.of(party)),
            replies,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT as usize)),
            tasks,
            under_way: HashMap::new(),
            closing: CancellationToken::new(),
        };
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(()),
            () = gone => Err(StreamEnd::Gone),
            ended = pump.run() => ended,
        };
        match ended {
            Ok(()) | Err(StreamEnd::Frame(FrameError::Closed)) => {
                pump.drain(&cancel).await;
            }
            Err(end) => tracing::debug!(peer = %party.peer, stream = number, error = %end, "stream ended"),
        }
        self.executor.forget_stream(number);
    }
}

/// Why a stream is not read any further.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    NotArrived(#[from] NotArrived),
    #[error("nothing arrived in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("the first request was not a greeting")]
    NoHello,
    #[error("the reply channel is closed")]
    WriterGone,
    #[error("the connection is gone")]
    Gone,
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
    /// Of the request and of its reply.
    _memory: [Option<Reserved>; 2],
}

/// When a request came, how many bytes of tensors it has, and what they take.
struct Arrival {
    at: Instant,
    body: u64,
    slot: OwnedSemaphorePermit,
    memory: Reserved,
}

struct Pump<R> {
    service: Arc<StreamService>,
    party: Party,
    stream: u64,
    reader: FrameReader<R>,
    gauge: Gauge,
    memory: PartyBudget,
    tables: TableCache,
    replies: mpsc::Sender<OutFrame>,
    in_flight: Arc<Semaphore>,
    tasks: JoinSet<()>,
    /// Requests that may be given up, by their ids.
    under_way: HashMap<u64, AbortHandle>,
    /// Ends the waits of requests whose client is gone.
    closing: CancellationToken,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pump<IdleReader<ReadHalf<S>>> {
    async fn run(&mut self) -> Result<(), StreamEnd> {
        self.hello().await?;
        loop {
            let slot = self.in_flight.clone().acquire_owned().await.map_err(|_| StreamEnd::WriterGone)?;
            self.gauge.frame_ended();
            let body = self.reader.next_body_len().await?;
            let header = self.reader.header_len();
            let counted = body + if header > SMALL_HEADER { header } else { 0 };
            // While it waits for memory the client's bytes stay in its own send buffer.
            let memory = timeout(IDLE_TIMEOUT, self.memory.reserve(counted)).await?.ok_or(StreamEnd::WriterGone)?;
            let arrived = Instant::now();
            self.gauge.count_from_here();
            let (gauge, read) = (self.gauge.clone(), self.reader.read());
            let (frame, memory) = arriving::whole::<Frame<Request>>(read, &gauge, memory, header + body).await?;
            self.handle(frame, Arrival { at: arrived, body, slot, memory }).await?;
            while self.tasks.try_join_next().is_some() {}
            self.under_way.retain(|_, task| !task.is_finished());
        }
    }

    async fn hello(&mut self) -> Result<(), StreamEnd> {
        let frame: Frame<Request> = timeout(HELLO_TIMEOUT, async {
            // A greeting has no tensors; whatever brings some is not one, and no memory is reserved for it.
            if self.reader.next_body_len().await? > 0 || self.reader.header_len() > HELLO_BYTES {
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
        let mut info = hosted.info();
        let response = if model == info.model {
            info.queue_depth = self.service.executor.depth() as u32;
            info.cache_tokens_left = Some(self.service.executor.session_room().0);
            Response::Welcome(Box::new(Welcome { info: info.to_json(), limits: self.service.limits }))
        } else {
            Response::Refused(Refusal::WrongModel { served: info.model })
        };
        self.reply(frame.id, (response, Vec::new()), None).await
    }

    async fn handle(&mut self, frame: Frame<Request>, arrival: Arrival) -> Result<(), StreamEnd> {
        let Frame { id, message, tensors } = frame;
        match message {
            Request::Forget { stash } => {
                self.service.executor.forget(self.stream, stash);
                Ok(())
            }
            Request::EndSession { session } => {
                self.service.executor.end_session(self.stream, session);
                Ok(())
            }
            Request::Cancel { request } => {
                // What was held for it is given back with the task.
                if let Some(task) = self.under_way.remove(&request) {
                    task.abort();
                }
                Ok(())
            }
            Request::Relay { token } => {
                self.take_relay(id, token, tensors, arrival);
                Ok(())
            }
            pass => self.begin(id, pass, tensors, arrival).await,
        }
    }

    /// Takes rows that another server passes on. While nobody asks for them they take no place of the stream's: others' rows come on it too.
    fn take_relay(&mut self, id: u64, token: RelayToken, tensors: Vec<Tensor>, arrival: Arrival) {
        let (service, party, replies) = (self.service.clone(), self.party, self.replies.clone());
        let Arrival { slot, memory, .. } = arrival;
        let task = self.tasks.spawn(async move {
            let mut slot = Some(slot);
            let delivered = service.rendezvous.deliver(party, token, tensors, memory, || slot = None).await;
            let (response, tensors) = match delivered {
                Ok(()) => (Response::Relayed, Vec::new()),
                Err(refusal) => refused(refusal),
            };
            let held = slot.map(|slot| Held { _slot: slot, _memory: [None, None] });
            let _ = replies.send(OutFrame { id, response, tensors, held }).await;
        });
        self.under_way.insert(id, task);
    }

    /// Checks a pass and sets it going.
    async fn begin(&mut self, id: u64, pass: Request, tensors: Vec<Tensor>, arrival: Arrival) -> Result<(), StreamEnd> {
        let Arrival { at: arrived, body, slot, mut memory } = arrival;
        // Whatever is narrow on the wire waits for its turn in f32.
        let decoded: u64 = tensors.iter().map(Tensor::f32_bytes).sum();
        let grown =
            memory.grow(decoded.saturating_sub(body), 0).map_err(|no_room| self.service.no_room(no_room, decoded));
        let service = &self.service;
        let begun = grown.and_then(|()| {
            let asked = request::pass(&service.hosted, &service.limits, &mut self.tables, pass, tensors)?;
            // Of rows that come from elsewhere nobody knows whether they come at all: their reply's memory is taken when they do.
            let room = match asked.awaits {
                None => Some(service.room_for_reply(&self.memory, asked.reply_bytes(), memory.bytes())?),
                Some(_) => None,
            };
            let deadline = arrived + asked.patience;
            let asker = Asker { party: self.party, stream: self.stream, arrived, deadline };
            Ok((Job::begin(service.clone(), asker, &self.memory, asked)?, room))
        });
        let (job, room) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                let held = Held { _slot: slot, _memory: [Some(memory), None] };
                return self.reply(id, refused(refusal), Some(held)).await;
            }
        };
        let mut held = Held { _slot: slot, _memory: [Some(memory), room] };
        let (replies, closing) = (self.replies.clone(), self.closing.clone());
        let task = self.tasks.spawn(async move {
            let Some(((response, tensors), room)) = job.answer(closing).await else { return };
            // Of rows that came from elsewhere.
            if room.is_some() {
                held._memory[1] = room;
            }
            let _ = replies.send(OutFrame { id, response, tensors, held: Some(held) }).await;
        });
        self.under_way.insert(id, task);
        Ok(())
    }

    async fn reply(&self, id: u64, (response, tensors): Answer, held: Option<Held>) -> Result<(), StreamEnd> {
        self.replies.send(OutFrame { id, response, tensors, held }).await.map_err(|_| StreamEnd::WriterGone)
    }

    /// Lets answers under way leave before the stream is dropped.
    async fn drain(self, cancel: &CancellationToken) {
        let Self { replies, mut tasks, closing, .. } = self;
        closing.cancel();
        drop(replies);
        let finish = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            _ = timeout(REPLY_TIMEOUT, finish) => {}
            () = async { cancel.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => {}
        }
    }
}

async fn write_replies<W: AsyncWrite + Unpin>(
    write: W,
    mut outbox: mpsc::Receiver<OutFrame>,
    service: Arc<StreamService>,
    party: Party,
) {
    let mut writer = FrameWriter::new(write, FrameKind::Response);
    while let Some(OutFrame { id, response, tensors, held }) = outbox.recv().await {
        if let Response::Refused(refusal) = &response {
            service.executor.note_refusal(party.peer, refusal);
        }
        let bytes: u64 = tensors.iter().map(|t| t.bytes().len() as u64).sum();
        let patience = REPLY_TIMEOUT + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S);
        let started = Instant::now();
        // A client that does not read its answers is given up, so that they do not pile up in memory.
        match timeout(patience, writer.write(id, &response, &tensors)).await {
            Ok(Ok(())) => {
                service.speed.replied(bytes, started.elapsed());
                drop((tensors, held));
            }
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let _ = writer.close().await;
}

#[cfg(test)]
mod tests;
