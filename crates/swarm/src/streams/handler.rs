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
use tokio::sync::mpsc;

use super::{Admission, IncomingStream, Link, OpenFailure, OpenRequest, PeerStream};
use crate::addresses::short;

/// Offers the block protocol, or nothing.
#[derive(Debug, Clone)]
pub(crate) struct Offer(Option<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

/// Opens and accepts streams on one connection.
#[derive(Debug)]
pub(crate) struct Handler {
    peer: PeerId,
    protocol: StreamProtocol,
    /// Where accepted streams go; `None` on nodes that accept none.
    incoming: Option<mpsc::Sender<IncomingStream>>,
    admission: Arc<Admission>,
    /// This connection.
    link: Arc<Link>,
    requests: VecDeque<OpenRequest>,
    waker: Option<Waker>,
}

impl Handler {
    pub(super) fn new(
        peer: PeerId,
        protocol: StreamProtocol,
        incoming: Option<mpsc::Sender<IncomingStream>>,
        admission: Arc<Admission>,
        link: Arc<Link>,
    ) -> Self {
        Self { peer, protocol, incoming, admission, link, requests: VecDeque::new(), waker: None }
    }

    /// Never waits: what cannot be taken now is refused by closing the stream.
    fn accept(&self, stream: Stream) {
        let delivered =
            self.incoming.as_ref().zip(self.admission.admit(self.peer)).is_some_and(|(incoming, permit)| {
                let stream = PeerStream::new(stream, Arc::clone(&self.admission), Arc::clone(&self.link), Some(permit));
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
        SubstreamProtocol::new(Offer(accepts.then(|| self.protocol.clone())), ())
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
                let protocol = SubstreamProtocol::new(Offer(Some(self.protocol.clone())), request);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(inbound) => self.accept(inbound.protocol),
            ConnectionEvent::FullyNegotiatedOutbound(outbound) => {
                let stream =
                    PeerStream::new(outbound.protocol, Arc::clone(&self.admission), Arc::clone(&self.link), None);
                // If the receiver is gone, the stream is closed by being dropped.
                if outbound.info.reply.send(Ok(stream)).is_ok() {
                    self.admission.counters.opened.fetch_add(1, Ordering::Relaxed);
                }
            }
            ConnectionEvent::DialUpgradeError(failed) => {
                let failure = match failed.error {
                    StreamUpgradeError::Timeout => OpenFailure::Io(std::io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::NegotiationFailed => OpenFailure::Unsupported,
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
