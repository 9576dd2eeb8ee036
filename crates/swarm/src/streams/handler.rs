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

/// The versions that a node speaks, the preferred one first. Clones are one list.
#[derive(Debug, Clone)]
pub(crate) struct Versions(Arc<[WireVersion]>);

impl Versions {
    pub(super) fn new(versions: Vec<WireVersion>) -> Self {
        Self(versions.into())
    }

    fn protocols(&self) -> Vec<StreamProtocol> {
        self.0.iter().filter_map(|version| StreamProtocol::try_from_owned(version.protocol()).ok()).collect()
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
    versions: Versions,
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
        versions: Versions,
        incoming: Option<mpsc::Sender<IncomingStream>>,
        allowed: AllowList,
        admission: Arc<Admission>,
        link: Arc<Link>,
    ) -> Self {
        Self { peer, versions, incoming, allowed, admission, link, requests: VecDeque::new(), waker: None }
    }

    /// Never waits: what cannot be taken now is refused by closing the stream.
    fn accept(&self, stream: Stream, wire: WireVersion) {
        let delivered =
            self.incoming.as_ref().zip(self.admission.admit(self.peer)).is_some_and(|(incoming, permit)| {
                let stream = PeerStream::new((stream, wire), &self.admission, &self.link, Some(permit));
                incoming.try_send(IncomingStream { peer: self.peer, stream }).is_ok()
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
        let offered = || if self.allowed.allows(&self.peer) { self.versions.protocols() } else { vec![NOT_ALLOWED] };
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
                let mut offered = self.versions.protocols();
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
                match WireVersion::of_protocol(protocol.as_ref()) {
                    Some(wire) if self.allowed.allows(&self.peer) => self.accept(stream, wire),
                    // It has learnt what it needed to know.
                    _ => drop(stream),
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(outbound) => {
                let (stream, protocol) = outbound.protocol;
                let Some(wire) = WireVersion::of_protocol(protocol.as_ref()) else {
                    let _ = outbound.info.reply.send(Err(OpenFailure::NotAllowed));
                    return;
                };
                let stream = PeerStream::new((stream, wire), &self.admission, &self.link, None);
                // If the receiver is gone, the stream is closed by being dropped.
                if outbound.info.reply.send(Ok(stream)).is_ok() {
                    self.admission.counters.opened.fetch_add(1, Ordering::Relaxed);
                }
            }
            ConnectionEvent::DialUpgradeError(failed) => {
                let failure = match failed.error {
                    StreamUpgradeError::Timeout => OpenFailure::Io(std::io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::NegotiationFailed => OpenFailure::Unsupported(self.versions.0.clone()),
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
