//! The part of the stream protocol that lives on one connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError};
use libp2p::swarm::{Stream, StreamProtocol, SubstreamProtocol};
use libp2p::{PeerId, core};
use petals_protocol::WireVersion;
use tokio::sync::mpsc;

use super::{Admission, AllowList, IncomingStream, Link, NOT_ALLOWED, OpenFailure, OpenRequest, PeerStream};
use crate::addresses::short;
use crate::shares::Party;

/// What a node speaks on streams of one kind, the preferred one first. Clones are one list.
#[derive(Debug, Clone)]
pub(crate) struct Spoken {
    protocols: Arc<[StreamProtocol]>,
    /// Those of block streams; other streams have none.
    versions: Arc<[WireVersion]>,
}

impl Spoken {
    /// Block streams in these versions.
    pub(crate) fn blocks(versions: &[WireVersion]) -> Self {
        let protocols = versions.iter().filter_map(|version| StreamProtocol::try_from_owned(version.protocol()).ok());
        Self { protocols: protocols.collect(), versions: versions.into() }
    }

    /// Streams of one protocol.
    pub(crate) fn only(protocol: &'static str) -> Self {
        Self { protocols: [StreamProtocol::new(protocol)].into(), versions: [].into() }
    }

    fn protocols(&self) -> Vec<StreamProtocol> {
        self.protocols.to_vec()
    }

    fn has(&self, protocol: &StreamProtocol) -> bool {
        self.protocols.contains(protocol)
    }
}

/// Offers these protocols, the preferred one first.
#[derive(Debug, Clone)]
pub(crate) struct Offer(Vec<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

/// Opens and accepts streams on one connection.
#[derive(Debug)]
pub(crate) struct Handler {
    peer: PeerId,
    spoken: Spoken,
    /// Where accepted streams go; `None` on nodes that accept none.
    incoming: Option<mpsc::Sender<IncomingStream>>,
    /// Who may open streams.
    allowed: AllowList,
    admission: Arc<Admission>,
    /// This connection.
    link: Arc<Link>,
    requests: VecDeque<OpenRequest>,
    waker: Option<Waker>,
}

impl Handler {
    pub(super) fn new(
        peer: PeerId,
        spoken: Spoken,
        incoming: Option<mpsc::Sender<IncomingStream>>,
        allowed: AllowList,
        admission: Arc<Admission>,
        link: Arc<Link>,
    ) -> Self {
        Self { peer, spoken, incoming, allowed, admission, link, requests: VecDeque::new(), waker: None }
    }

    /// Never waits: what cannot be taken now is refused by closing the stream.
    fn accept(&self, stream: Stream, protocol: &StreamProtocol) {
        let party = Party { peer: self.peer, origin: self.link.origin };
        let delivered = self.incoming.as_ref().zip(self.admission.admit(party)).is_some_and(|(incoming, permit)| {
            let stream = PeerStream::new((stream, protocol), &self.admission, &self.link, Some(permit));
            incoming.try_send(IncomingStream { party, stream }).is_ok()
        });
        let counter = if delivered { &self.admission.counters.accepted } else { &self.admission.counters.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        if !delivered {
            tracing::debug!(peer = short(&self.peer), "refused a stream: too many are open or waiting");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenRequest;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenRequest;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        // A node whose program has dropped its `Incoming` serves no blocks, and says so.
        let accepts = self.incoming.as_ref().is_some_and(|incoming| !incoming.is_closed());
        let offered = || if self.allowed.allows(&self.peer) { self.spoken.protocols() } else { vec![NOT_ALLOWED] };
        SubstreamProtocol::new(Offer(accepts.then(offered).unwrap_or_default()), ())
    }

    fn on_behaviour_event(&mut self, request: OpenRequest) {
        self.requests.push_back(request);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offer, OpenRequest, Infallible>> {
        while let Some(request) = self.requests.pop_front() {
            // Whoever asked may have given up meanwhile.
            if !request.reply.is_closed() {
                let mut offered = self.spoken.protocols();
                offered.push(NOT_ALLOWED);
                let protocol = SubstreamProtocol::new(Offer(offered), request);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(inbound) => {
                let (stream, protocol) = inbound.protocol;
                // Anybody else has learnt what it needed to know.
                if self.spoken.has(&protocol) && self.allowed.allows(&self.peer) {
                    self.accept(stream, &protocol);
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(outbound) => {
                let (stream, protocol) = outbound.protocol;
                if !self.spoken.has(&protocol) {
                    let _ = outbound.info.reply.send(Err(OpenFailure::NotAllowed));
                    return;
                }
                let stream = PeerStream::new((stream, &protocol), &self.admission, &self.link, None);
                // If the receiver is gone, the stream is closed by being dropped.
                if outbound.info.reply.send(Ok(stream)).is_ok() {
                    self.admission.counters.opened.fetch_add(1, Ordering::Relaxed);
                }
            }
            ConnectionEvent::DialUpgradeError(failed) => {
                let failure = match failed.error {
                    StreamUpgradeError::Timeout => OpenFailure::Io(std::io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::NegotiationFailed => OpenFailure::Unsupported(self.spoken.versions.clone()),
                    StreamUpgradeError::Io(error) => OpenFailure::Io(error),
                    StreamUpgradeError::Apply(never) => core::util::unreachable(never),
                };
                let _ = failed.info.reply.send(Err(failure));
            }
            _ => {}
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.link.closed.cancel();
    }
}
