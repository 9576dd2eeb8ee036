//! The streams of a hostile server: between whoever asks and an honest server.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use petals_protocol::{
    BackwardRequest, ForwardRequest, Frame, FrameKind, FrameLimits, FrameReader, FrameWriter, Limits, NextServer,
    PassLayout, RelayToken, Request, Response, RowSource, RowTarget, ServerInfo, TableSource, TablesId, Tensor,
    Welcome,
};
use petals_swarm::{Multiaddr, PeerId, PeerStream, RequestStream, SwarmHandle};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::tamper::{Memory, mangle, tamper};
use super::{Misbehaviour, Shared};

/// Longest wait for what honest nodes do at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all streams share.
#[derive(Debug)]
pub(super) struct Service {
    swarm: SwarmHandle,
    shared: Arc<Shared>,
    honest: (PeerId, Vec<Multiaddr>),
    memory: Mutex<Memory>,
    /// Rows that came under a token.
    relayed: Mutex<HashMap<RelayToken, Vec<Tensor>>>,
    came: Notify,
}

type Writer = Arc<tokio::sync::Mutex<WriteHalf<PeerStream>>>;
type Answer = (Response, Vec<Tensor>);

/// One stream to this server, and the one to the honest server that belongs to it.
struct Stream {
    service: Arc<Service>,
    honest: Arc<RequestStream>,
    writer: Writer,
    tables: HashMap<TablesId, Tensor>,
    under_way: HashMap<u64, AbortHandle>,
    tasks: JoinSet<()>,
}

/// Where an answer's rows go, and how many of its tensors are rows.
struct Onward {
    target: RowTarget,
    rows: usize,
}

impl Service {
    pub(super) fn new(swarm: SwarmHandle, shared: Arc<Shared>, honest: (PeerId, Vec<Multiaddr>)) -> Self {
        Self { swarm, shared, honest, memory: Mutex::default(), relayed: Mutex::default(), came: Notify::new() }
    }

    pub(super) async fn serve(self: Arc<Self>, stream: PeerStream) {
        let (read, write) = stream.split();
        let mut reader = FrameReader::new(read, FrameKind::Request, FrameLimits::default());
        let Ok(hello) = reader.read::<Request>().await else { return };
        let writer = Arc::new(tokio::sync::Mutex::new(write));
        let Ok(honest) = self.greet(&hello, &writer).await else { return };
        let honest = Arc::new(honest);
        let (tables, under_way, tasks) = (HashMap::new(), HashMap::new(), JoinSet::new());
        let mut stream = Stream { service: self, honest, writer, tables, under_way, tasks };
        let _ = stream.run(reader).await;
    }

    /// Opens the stream to the honest server and answers the greeting.
    async fn greet(&self, hello: &Frame<Request>, writer: &Writer) -> anyhow::Result<RequestStream> {
        let (honest, limits) = self.open(self.honest.0, &self.honest.1).await?;
        let mut info = self.shared.info.clone();
        match self.shared.misbehaviour() {
            Misbehaviour::Mute => {
                self.shared.count_misdeed();
                std::future::pending::<()>().await;
            }
            Misbehaviour::OtherSpan(span) => info.span = span,
            Misbehaviour::OtherModel(model) => info.model = model,
            _ => {}
        }
        if (info.span, &info.model) != (self.shared.info.span, &self.shared.info.model) {
            self.shared.count_misdeed();
        }
        let welcome = Response::Welcome(Box::new(Welcome { info: info.to_json(), limits }));
        send(writer, &frame(hello.id, &welcome, &[]).await?).await?;
        Ok(honest)
    }

    async fn open(&self, peer: PeerId, addresses: &[Multiaddr]) -> anyhow::Result<(RequestStream, Limits)> {
        let stream = RequestStream::new(self.swarm.open_stream(peer, addresses, PATIENCE).await?);
        let hello = Request::Hello { model: self.shared.info.model.clone() };
        match stream.request(hello, Vec::new(), 0, PATIENCE).await? {
            (Response::Welcome(welcome), _) => Ok((stream, welcome.limits)),
            (other, _) => bail!("no greeting: {other:?}"),
        }
    }

    /// Waits for the rows that another server passes on.
    async fn rows(&self, token: RelayToken) -> anyhow::Result<Vec<Tensor>> {
        let wait = async {
            loop {
                let came = self.came.notified();
                if let Some(rows) = lock(&self.relayed).remove(&token) {
                    return rows;
                }
                came.await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, wait).await?)
    }

    /// Passes rows on to the next server of a chain.
    async fn pass_on(&self, next: NextServer, rows: Vec<Tensor>) -> anyhow::Result<()> {
        let peer = PeerId::from_bytes(&next.peer)?;
        let entries = self.swarm.lookup(&self.shared.info.model, whole(&self.shared.info)?).await?;
        let entry = entries.into_iter().find(|entry| entry.peer == peer).context("an unknown server")?;
        let (stream, _) = self.open(peer, &entry.addresses).await?;
        match stream.request(Request::Relay { token: next.token }, rows, 0, PATIENCE).await? {
            (Response::Relayed, _) => Ok(()),
            (other, _) => bail!("not relayed: {other:?}"),
        }
    }

    /// Lets the honest server compute, and does to its answer what is to be done.
    async fn answer(
        &self,
        honest: &RequestStream,
        request: Request,
        tensors: Vec<Tensor>,
        onward: Onward,
        source: RowSource,
    ) -> anyhow::Result<Answer> {
        let mut tensors = tensors;
        if let RowSource::Relay(token) = source {
            let rows = self.rows(token).await?;
            // Rows come in front of a forward's tables and behind everything of a backward.
            let place = if matches!(request, Request::Forward(_)) { 0 } else { tensors.len() };
            tensors.splice(place..place, rows);
        }
        let backward = matches!(request, Request::Backward(_));
        let (response, tensors) = honest.request(request, tensors, FrameLimits::default().max_body, PATIENCE).await?;
        if let Response::Refused(_) = response {
            return Ok((response, Vec::new()));
        }
        let (mut tensors, wrong) = {
            let misbehaviour = self.shared.misbehaviour();
            tamper(&misbehaviour, &mut lock(&self.memory), backward, tensors)
        };
        if wrong {
            self.shared.count_misdeed();
        }
        if let RowTarget::Relay(next) = onward.target {
            let rest = tensors.split_off(onward.rows.min(tensors.len()));
            self.pass_on(next, tensors).await?;
            tensors = rest;
        }
        Ok((response, tensors))
    }
}

impl Stream {
    async fn run(&mut self, mut reader: FrameReader<ReadHalf<PeerStream>>) -> anyhow::Result<()> {
        loop {
            let Frame { id, message, tensors } = reader.read::<Request>().await?;
            while self.tasks.try_join_next().is_some() {}
            self.under_way.retain(|_, task| !task.is_finished());
            match message {
                Request::Cancel { request } => {
                    if let Some(task) = self.under_way.remove(&request) {
                        task.abort();
                    }
                }
                Request::Relay { token } => {
                    lock(&self.service.relayed).insert(token, tensors);
                    self.service.came.notify_waiters();
                    send(&self.writer, &frame(id, &Response::Relayed, &[]).await?).await?;
                }
                Request::Forward(request) => self.forward(id, request, tensors)?,
                Request::Backward(request) => self.backward(id, request, tensors)?,
                other => self.honest.notify(other),
            }
        }
    }

    /// Sends the tables of requests inline, so that their order on the honest server's stream does not matter.
    fn inline(&mut self, source: TableSource, place: usize, tensors: &mut Vec<Tensor>) -> anyhow::Result<()> {
        match source {
            TableSource::Inline => {}
            TableSource::Keep(name) => {
                let tables = tensors.get(place).context("no tables")?.clone();
                self.tables.clear();
                self.tables.insert(name, tables);
            }
            TableSource::Kept(name) => {
                let tables = self.tables.get(&name).context("unknown tables")?.clone();
                anyhow::ensure!(place <= tensors.len(), "too few tensors");
                tensors.insert(place, tables);
            }
        }
        Ok(())
    }

    fn forward(&mut self, id: u64, mut request: ForwardRequest, mut tensors: Vec<Tensor>) -> anyhow::Result<()> {
        let source = std::mem::take(&mut request.input);
        let place = if source == RowSource::Inline { inputs(&request.layout) } else { 0 };
        self.inline(std::mem::take(&mut request.tables), place, &mut tensors)?;
        let rows = 1 + usize::from(request.layout.returns_prefix());
        let onward = Onward { target: std::mem::take(&mut request.output), rows };
        self.pass(id, Request::Forward(request), tensors, onward, source);
        Ok(())
    }

    fn backward(&mut self, id: u64, mut request: BackwardRequest, mut tensors: Vec<Tensor>) -> anyhow::Result<()> {
        let source = std::mem::take(&mut request.grads);
        self.inline(std::mem::take(&mut request.tables), inputs(&request.layout), &mut tensors)?;
        let rows = usize::from(request.text_grad) + usize::from(request.layout.carries_prefix());
        let onward = Onward { target: std::mem::take(&mut request.output), rows };
        self.pass(id, Request::Backward(request), tensors, onward, source);
        Ok(())
    }

    fn pass(&mut self, id: u64, request: Request, tensors: Vec<Tensor>, onward: Onward, source: RowSource) {
        let (service, honest, writer) = (self.service.clone(), self.honest.clone(), self.writer.clone());
        service.shared.passes.fetch_add(1, Ordering::Relaxed);
        let stash = match &request {
            Request::Forward(request) => request.stash,
            Request::Backward(request) => request.stash,
            _ => None,
        };
        service.shared.without_stash.fetch_add(usize::from(stash.is_none()), Ordering::Relaxed);
        let task = self.tasks.spawn(async move {
            let answered = service.answer(&honest, request, tensors, onward, source).await;
            // Whatever the honest part cannot do looks like a server that fell silent.
            if let Ok((response, tensors)) = answered {
                let _ = reply(&service.shared, &writer, id, response, tensors).await;
            }
        });
        self.under_way.insert(id, task);
    }
}

/// Sends an answer, as well as the misbehaviour lets it.
async fn reply(
    shared: &Shared,
    writer: &Writer,
    id: u64,
    mut response: Response,
    mut tensors: Vec<Tensor>,
) -> anyhow::Result<()> {
    let misbehaviour = shared.misbehaviour();
    match &misbehaviour {
        Misbehaviour::Hang => {
            shared.count_misdeed();
            std::future::pending::<()>().await;
        }
        Misbehaviour::HangUp => {
            shared.count_misdeed();
            return Ok(writer.lock().await.close().await?);
        }
        Misbehaviour::Slow(time) => {
            shared.count_misdeed();
            tokio::time::sleep(*time).await;
        }
        Misbehaviour::SlowForFree(time) => {
            shared.count_misdeed();
            tokio::time::sleep(*time).await;
            claim_no_time(&mut response);
        }
        Misbehaviour::Chatter(pause) => {
            shared.count_misdeed();
            loop {
                send(writer, &frame(u64::MAX, &Response::Relayed, &[]).await?).await?;
                tokio::time::sleep(*pause).await;
            }
        }
        Misbehaviour::Refuse(refusal) => {
            shared.count_misdeed();
            (response, tensors) = (Response::Refused(refusal.clone()), Vec::new());
        }
        Misbehaviour::WrongKind => {
            shared.count_misdeed();
            (response, tensors) = (Response::Relayed, Vec::new());
        }
        _ => {}
    }
    let whole = frame(id, &response, &tensors).await?;
    let sent = mangle(&misbehaviour, whole.clone());
    if let Misbehaviour::Trickle(pause) = misbehaviour {
        shared.count_misdeed();
        let mut writer = writer.lock().await;
        for byte in sent.chunks(1) {
            writer.write_all(byte).await?;
            writer.flush().await?;
            tokio::time::sleep(pause).await;
        }
        return Ok(());
    }
    send(writer, &sent).await?;
    if sent != whole {
        shared.count_misdeed();
        if misbehaviour == Misbehaviour::Truncated {
            writer.lock().await.close().await?;
        }
    }
    Ok(())
}

/// An answer that says that it cost nothing.
fn claim_no_time(response: &mut Response) {
    match response {
        Response::Forward(reply) => {
            (reply.queue_us, reply.compute_us, reply.handover) = (0, 0, Default::default());
        }
        Response::Backward(reply) => {
            (reply.queue_us, reply.compute_us, reply.handover) = (0, 0, Default::default());
        }
        _ => {}
    }
}

/// Tensors of a forward in front of its tables.
fn inputs(layout: &PassLayout) -> usize {
    1 + usize::from(layout.carries_prefix())
}

/// Blocks of servers that may come before or after this one.
fn whole(info: &ServerInfo) -> anyhow::Result<petals_protocol::Span> {
    Ok(petals_protocol::Span::new(info.span.start().saturating_sub(1), info.span.end() + 1)?)
}

async fn frame(id: u64, response: &Response, tensors: &[Tensor]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    FrameWriter::new(&mut bytes, FrameKind::Response).write(id, response, tensors).await?;
    Ok(bytes)
}

async fn send(writer: &Writer, bytes: &[u8]) -> anyhow::Result<()> {
    let mut writer = writer.lock().await;
    writer.write_all(bytes).await?;
    Ok(writer.flush().await?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
