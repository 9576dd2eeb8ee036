//! Block streams: opened to a peer, or accepted from one.
//!
//! This is a small protocol handler of our own rather than `libp2p-stream`, which loses inbound streams that arrive
//! faster than its one-slot channel is emptied, and whose opener can wait forever.

mod admission;
mod allow;
mod behaviour;
mod dial_error;
mod handler;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite, IoSlice, IoSliceMut};
use libp2p::{PeerId, StreamProtocol};
use petals_protocol::WireVersion;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub(crate) use admission::Admission;
use admission::Permit;
pub use admission::Traffic;
pub(crate) use allow::AllowList;
pub(crate) use behaviour::Behaviour;
pub(crate) use dial_error::describe_dial_error;
pub(crate) use handler::Spoken;

use crate::shares::{Origin, Party};

/// Inbound streams waiting for [`Incoming::next`]. Whoever takes them only spawns, so a few suffice; a burst of clients
/// that reconnect at once should fit.
pub(crate) const INCOMING_CAPACITY: usize = 256;

/// Offered instead of the block protocol to peers that are not on this node's list, so that they learn why.
const NOT_ALLOWED: StreamProtocol = StreamProtocol::new("/petals-rs/not-allowed/1");

/// Why no stream was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nothing happened in the time allowed.
    #[error("peer {peer} did not open a stream within {after:?}")]
    Timeout {
        /// Who was asked.
        peer: PeerId,
        /// The time allowed.
        after: Duration,
    },
    /// No connection could be made.
    #[error("peer {peer} cannot be reached: {reason}")]
    Unreachable {
        /// Who was dialled.
        peer: PeerId,
        /// Each address tried and what went wrong there.
        reason: String,
    },
    /// The peer answers, but serves no blocks.
    #[error("peer {0} serves no blocks")]
    Unsupported(PeerId),
    /// The peer serves blocks, in versions of the protocol that are not spoken here.
    #[error("peer {peer} {versions}")]
    OtherVersion {
        /// The peer.
        peer: PeerId,
        /// What it speaks, what this node speaks, and what to upgrade.
        versions: Box<str>,
    },
    /// The peer serves only those on its list.
    #[error("peer {peer} serves only peers on its list: ask its operator for `--allow-peer {local}`")]
    NotAllowed {
        /// The peer.
        peer: PeerId,
        /// This node.
        local: Box<PeerId>,
    },
    /// The connection closed while the stream was being opened.
    #[error("the connection to peer {0} closed")]
    ConnectionLost(PeerId),
    /// The stream failed while it was being opened.
    #[error("the stream to peer {peer} failed")]
    Io {
        /// The peer.
        peer: PeerId,
        /// Why.
        source: io::Error,
    },
    /// This node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

impl OpenError {
    /// No version of `ours` was agreed on with a peer that says it speaks `theirs`.
    pub(crate) fn no_version(peer: PeerId, theirs: &[WireVersion], ours: &[WireVersion]) -> Self {
        // Who has a version in common does not serve blocks for another reason: it is about to stop.
        if theirs.is_empty() || theirs.iter().any(|version| ours.contains(version)) {
            return Self::Unsupported(peer);
        }
        let remedy = if theirs.iter().max() > ours.iter().max() {
            "upgrade this program to the version of the swarm"
        } else {
            "its operator should upgrade petals-node there"
        };
        let (theirs, ours) = (WireVersion::list(theirs), WireVersion::list(ours));
        let versions = format!("speaks wire version {theirs} and this program {ours}: {remedy}").into();
        Self::OtherVersion { peer, versions }
    }

    /// Whether the same peer may well answer if asked again.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::ConnectionLost(_) | Self::Io { .. } | Self::Unreachable { .. })
    }
}

/// A request for an outbound stream. Dropping it unanswered means that the connection closed.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) reply: oneshot::Sender<Result<PeerStream, OpenFailure>>,
}

/// What the handler and the behaviour know of a failure; the caller adds the peer.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    Unreachable(String),
    /// None of these versions was accepted.
    Unsupported(Arc<[WireVersion]>),
    NotAllowed,
    Io(io::Error),
}

/// A connection, as its streams see it. Each of them holds one reference, the behaviour and the handler another one each.
#[derive(Debug)]
pub(crate) struct Link {
    /// Ends the streams.
    closed: CancellationToken,
    /// Where the peer is.
    origin: Origin,
    relayed: bool,
    /// Whether the peer is connected directly as well.
    outdated: AtomicBool,
}

impl Link {
    fn new(origin: Origin, relayed: bool) -> Arc<Self> {
        Arc::new(Self { closed: CancellationToken::new(), origin, relayed, outdated: AtomicBool::new(false) })
    }
}

/// Tells whether a stream still takes the best path to its peer.
#[derive(Debug, Clone)]
pub struct StreamPath(Arc<Link>);

impl StreamPath {
    /// Whether every byte passes a third machine.
    pub fn is_relayed(&self) -> bool {
        self.0.relayed
    }

    /// Whether the stream goes through a relay although there is a direct connection by now: a new one would be faster.
    /// The stream goes on working.
    pub fn is_outdated(&self) -> bool {
        self.0.outdated.load(Ordering::Relaxed)
    }
}

/// A stream of bytes to or from a peer, in order and encrypted. Ends with an error when its connection closes.
#[derive(Debug)]
pub struct PeerStream {
    inner: libp2p::Stream,
    wire: Option<WireVersion>,
    admission: Arc<Admission>,
    link: Arc<Link>,
    /// The yamux multiplexer does not wake the readers of a connection that this side closes, and a dead peer never
    /// closes its own: without this a read would wait forever.
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: Option<Permit>,
}

/// A stream that a peer opened to this node.
#[derive(Debug)]
pub struct IncomingStream {
    /// Who opened it, and from where.
    pub party: Party,
    /// The stream.
    pub stream: PeerStream,
}

impl IncomingStream {
    /// Waits for the end of the connection, which whoever does not read meanwhile learns in no other way.
    pub fn connection_ends(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stream.link.closed.clone().cancelled_owned()
    }
}

/// The streams that others open to this node. Take them promptly: what does not fit in the queue is refused.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<IncomingStream>,
}

impl Incoming {
    pub(crate) fn new(receiver: mpsc::Receiver<IncomingStream>) -> Self {
        Self { receiver }
    }

    /// The next stream, or `None` once the node has shut down. Cancel safe.
    pub async fn next(&mut self) -> Option<IncomingStream> {
        self.receiver.recv().await
    }
}

impl PeerStream {
    fn new(
        (inner, protocol): (libp2p::Stream, &StreamProtocol),
        admission: &Arc<Admission>,
        link: &Arc<Link>,
        permit: Option<Permit>,
    ) -> Self {
        let wire = WireVersion::of_protocol(protocol.as_ref());
        let closed = Box::pin(link.closed.clone().cancelled_owned());
        Self { inner, wire, admission: Arc::clone(admission), link: Arc::clone(link), closed, _permit: permit }
    }

    /// The version of the messages that was agreed on with the peer; none on streams of another kind than blocks.
    pub fn wire_version(&self) -> Option<WireVersion> {
        self.wire
    }

    /// The path that this stream takes, also for when the stream has been split.
    pub fn path(&self) -> StreamPath {
        StreamPath(self.link.clone())
    }

    /// What has arrived is delivered before the end is.
    fn or_closed<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() && self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the connection to the peer closed",
            )));
        }
        result
    }

    fn read(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.admission.counters.bytes_in.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        self.or_closed(cx, result)
    }

    fn written(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.admission.counters.bytes_out.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        self.or_closed(cx, result)
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.read(cx, result)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        self.read(cx, result)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.or_closed(cx, result)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_close(cx);
        self.or_closed(cx, result)
    }
}
