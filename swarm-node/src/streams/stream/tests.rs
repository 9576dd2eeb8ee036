use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::channel::mpsc::{self, Receiver, Sender};
use futures::stream::{IntoAsyncRead, TryStreamExt};
use petals_protocol::{
    Fingerprint, ForwardRequest, Injection, ModelId, PassLayout, RowSource, RowTarget, ServerInfo, ServerState, Span,
    TableSource, WireDtype,
};
use petals_swarm::PeerId;

use super::*;
use crate::executor::{Executor, ExecutorConfig};
use crate::fixture;
use crate::machine::budget::NoRoom;
use crate::machine::measure::Rates;
use crate::machine::speed::Speed;
use crate::placement::hosted::Hosted;
use crate::streams::Bounds;
use crate::streams::service::RETRY_WITHOUT_MEMORY_MS;

const PATIENCE: Duration = Duration::from_secs(10);
/// The pipe holds no more than a few pieces of this size: nobody can write far ahead of the reader.
const PIECE: usize = 16;

/// One end of a stream in memory.
struct Pipe {
    read: IntoAsyncRead<Receiver<io::Result<Vec<u8>>>>,
    write: Sender<io::Result<Vec<u8>>>,
}

fn pipe() -> (Pipe, Pipe) {
    let ((a, from_a), (b, from_b)) = (mpsc::channel(1), mpsc::channel(1));
    (Pipe { read: from_b.into_async_read(), write: a }, Pipe { read: from_a.into_async_read(), write: b })
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let piece = &buf[..buf.len().min(PIECE)];
        let sent = self.write.poll_ready(cx).map_ok(|()| self.write.start_send(Ok(piece.to_vec())));
        sent.map(|sent| sent.and_then(|sent| sent).map(|()| piece.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.close_channel();
        Poll::Ready(Ok(()))
    }
}

struct Client {
    reader: FrameReader<ReadHalf<Pipe>>,
    writer: FrameWriter<futures::io::WriteHalf<Pipe>>,
    hidden: usize,
    service: Arc<StreamService>,
    party: Party,
    /// Ends the connection.
    gone: CancellationToken,
    _executor: Executor,
}

impl Client {
    /// A stream to a server with so much memory for requests and replies.
    fn connect(memory_bytes: u64, config: ExecutorConfig) -> Self {
        let stack = fixture::stack();
        let info = ServerInfo::new(model(), stack.span(), ServerState::Online);
        let (hidden, widths) = (stack.config().hidden_size, stack.config().block_widths());
        let speed = Arc::new(Speed::new(Rates { forward: 1.0, decode: 1.0 }));
        let executor = Executor::start(stack, config, speed.clone()).unwrap();
        let hosted = Arc::new(Hosted::new(info, widths));
        let service = Arc::new(StreamService::new(
            hosted,
            executor.handle(),
            speed,
            None,
            Bounds { rows: 1000, memory: memory_bytes, adapter: None },
        ));
        let (near, far) = pipe();
        let party = Party::unplaced(PeerId::random());
        let gone = CancellationToken::new();
        tokio::spawn(service.clone().serve(party, far, gone.clone().cancelled_owned(), CancellationToken::new()));
        let (read, write) = near.split();
        let reader = FrameReader::new(read, FrameKind::Response, FrameLimits::default());
        let writer = FrameWriter::new(write, FrameKind::Request);
        Self { reader, writer, hidden, service, party, gone, _executor: executor }
    }

    async fn hello(&mut self) {
        self.writer.write(0, &Request::Hello { model: model() }, &[]).await.unwrap();
        assert!(matches!(self.response().await.unwrap(), Response::Welcome(_)));
    }

    async fn forward(&mut self, rows: u32) {
        let request = forward_request(forward_layout(rows));
        let shape = [rows as usize, self.hidden];
        let text = Tensor::from_f32(WireDtype::F32, &shape, &vec![0.1; shape[0] * shape[1]]);
        let (message, tensors) = (Request::Forward(request), [text]);
        let write = self.writer.write(1, &message, &tensors);
        timeout(PATIENCE, write).await.expect("it is read in time").unwrap();
    }

    async fn response(&mut self) -> Result<Response, FrameError> {
        let frame: Frame<Response> = timeout(PATIENCE, self.reader.read()).await.expect("an answer in time")?;
        Ok(frame.message)
    }
}

fn forward_layout(rows: u32) -> PassLayout {
    PassLayout {
        span: Span::new(0, 1).unwrap(),
        lengths: vec![rows],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    }
}

fn forward_request(layout: PassLayout) -> ForwardRequest {
    ForwardRequest {
        layout,
        tables: TableSource::Inline,
        stash: None,
        input: RowSource::Inline,
        output: RowTarget::Reply,
        reply_dtype: WireDtype::F32,
        deadline_ms: 10_000,
    }
}

fn model() -> ModelId {
    ModelId::new("m", Fingerprint([0; 8])).unwrap()
}

#[tokio::test]
async fn a_greeting_with_a_body_ends_the_stream() {
    let mut client = Client::connect(1 << 20, ExecutorConfig::default());
    let body = Tensor::from_f32(WireDtype::F32, &[1], &[0.0]);
    let _ = client.writer.write(0, &Request::Hello { model: model() }, &[body]).await;
    assert!(client.response().await.is_err());
}

#[tokio::test]
async fn memory_is_held_until_the_reply_is_written() {
    let mut client = Client::connect(1 << 20, ExecutorConfig::default());
    client.hello().await;
    client.forward(10).await;
    timeout(PATIENCE, client.reader.next_body_len()).await.unwrap().unwrap();
    let (all, memory) = (client.service.memory.most(), client.service.memory.of(client.party));
    assert_eq!(memory.try_reserve(all, 0).unwrap_err(), NoRoom::Now);
    assert!(matches!(client.response().await.unwrap(), Response::Forward(_)));
    timeout(PATIENCE, memory.reserve(all)).await.expect("it is given back").unwrap();
}

#[tokio::test]
async fn no_room_for_a_reply_is_a_refusal_and_the_stream_goes_on() {
    let mut client = Client::connect(1 << 20, ExecutorConfig::default());
    client.hello().await;
    let memory = client.service.memory.of(client.party);
    // Room for the request of 10 rows and not for its reply.
    let request = (4 * 10 * client.hidden as u64).next_multiple_of(1024);
    let taken = memory.reserve(client.service.memory.most() - request).await.unwrap();
    client.forward(10).await;
    let busy = Response::Refused(Refusal::Busy { retry_after_ms: RETRY_WITHOUT_MEMORY_MS });
    assert_eq!(client.response().await.unwrap(), busy);
    drop(taken);
    client.forward(10).await;
    assert!(matches!(client.response().await.unwrap(), Response::Forward(_)));
}

#[tokio::test]
async fn a_pass_that_needs_too_much_memory_is_refused() {
    let mut client = Client::connect(1 << 20, ExecutorConfig { pass_bytes: 1, ..ExecutorConfig::default() });
    client.hello().await;
    client.forward(1).await;
    let response = client.response().await.unwrap();
    assert!(matches!(&response, Response::Refused(Refusal::TooLarge { limit: 1, .. })), "{response:?}");
}

#[tokio::test]
async fn a_long_header_before_the_greeting_ends_the_stream() {
    let mut client = Client::connect(1 << 20, ExecutorConfig::default());
    let name = "x".repeat(HELLO_BYTES as usize);
    let _ =
        timeout(PATIENCE, client.writer.write(0, &Response::Refused(Refusal::BadRequest { what: name }), &[])).await;
    assert!(client.response().await.is_err(), "what is so long is not even refused");
}

#[tokio::test]
async fn rows_are_counted_as_they_wait_and_not_as_they_travel() {
    let mut client = Client::connect(1 << 20, ExecutorConfig::default());
    client.hello().await;
    let memory = client.service.memory.of(client.party);
    // Room for the bytes of 100 rows on the wire, and not for the rows.
    let rows = 100 * client.hidden;
    let taken = memory.reserve(client.service.memory.most() - 2 * rows as u64).await.unwrap();
    let mut layout = forward_layout(100);
    layout.read_rows = Some(vec![0]);
    let request = forward_request(layout);
    let text = Tensor::from_f32(WireDtype::Int8, &[100, client.hidden], &vec![0.1; rows]);
    timeout(PATIENCE, client.writer.write(1, &Request::Forward(request.clone()), std::slice::from_ref(&text)))
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(client.response().await.unwrap(), Response::Refused(Refusal::Busy { .. })));
    drop(taken);
    timeout(PATIENCE, client.writer.write(1, &Request::Forward(request), &[text])).await.unwrap().unwrap();
    assert!(matches!(client.response().await.unwrap(), Response::Forward(_)));
}

#[tokio::test]
async fn requests_that_wait_end_with_their_connection() {
    let mut client = Client::connect(1 << 20, ExecutorConfig::default());
    client.hello().await;
    // As many as a stream may have, so that it is not read any more.
    for number in 0..MAX_IN_FLIGHT {
        let input = RowSource::Relay(RelayToken([number as u8; 16]));
        let waits = ForwardRequest { input, deadline_ms: 600_000, ..forward_request(forward_layout(1)) };
        let waits = Request::Forward(waits);
        let write = client.writer.write(1 + u64::from(number), &waits, &[]);
        timeout(PATIENCE, write).await.unwrap().unwrap();
    }
    let is_served = |client: &Client| Arc::strong_count(&client.service) > 1;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(is_served(&client), "they wait");
    client.gone.cancel();
    let ends = async {
        while is_served(&client) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, ends).await.expect("nothing waits for who is gone");
}
