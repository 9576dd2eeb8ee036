//! The part of the stream protocol that knows all connections: finds one for each request, or dials.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libp2p::core::transport::PortUse;
use libp2p::core::{self, Endpoint};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, NotifyHandler, StreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use petals_protocol::PROTOCOL_NAME;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handler::Handler;
use super::{Admission, IncomingStream, OpenFailure, OpenRequest};
use crate::addresses::is_tcp;
use crate::node::describe_dial_error;

/// Opens streams to peers, and hands over those that peers open.
#[derive(Debug)]
pub(crate) struct Behaviour {
    protocol: StreamProtocol,
    incoming: Option<mpsc::Sender<IncomingStream>>,
    admission: Arc<Admission>,
    connections: HashMap<PeerId, Vec<ConnectionId>>,
    /// Ends the streams of each connection.
    closers: HashMap<ConnectionId, CancellationToken>,
    dialling: HashMap<PeerId, Dialling>,
    events: VecDeque<ToSwarm<Infallible, OpenRequest>>,
    waker: Option<Waker>,
}

/// Requests waiting for a connection.
#[derive(Debug)]
struct Dialling {
    attempt: ConnectionId,
    /// Addresses to try if the attempt fails.
    rest: Option<Vec<Multiaddr>>,
    /// What happened at those tried before.
    failures: Vec<String>,
    requests: Vec<OpenRequest>,
}

impl Behaviour {
    pub(crate) fn new(incoming: Option<mpsc::Sender<IncomingStream>>, admission: Arc<Admission>) -> Self {
        Self {
            protocol: StreamProtocol::new(PROTOCOL_NAME),
            incoming,
            admission,
            connections: HashMap::new(),
            closers: HashMap::new(),
            dialling: HashMap::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream, over a new connection if there is none. TCP addresses are tried first, because TCP moves more
    /// bytes per second; if none of them answers, the others and those known from the hash table are.
    pub(crate) fn open(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, request: OpenRequest) {
        if let Some(connection) = self.connections.get(&peer).and_then(|all| all.first()) {
            self.request_on(peer, *connection, request);
        } else if let Some(dialling) = self.dialling.get_mut(&peer) {
            dialling.requests.push(request);
        } else {
            let (tcp, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_tcp);
            let (first, rest) = if tcp.is_empty() { (others, None) } else { (tcp, Some(others)) };
            let attempt = self.dial(peer, first, rest.is_none());
            self.dialling.insert(peer, Dialling { attempt, rest, failures: Vec::new(), requests: vec![request] });
        }
        self.wake();
    }

    fn request_on(&mut self, peer_id: PeerId, connection: ConnectionId, event: OpenRequest) {
        self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, and_known: bool) -> ConnectionId {
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses);
        let opts = if and_known { opts.extend_addresses_through_behaviour() } else { opts }.build();
        let attempt = opts.connection_id();
        self.events.push_back(ToSwarm::Dial { opts });
        attempt
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId) {
        self.connections.entry(peer).or_default().push(connection);
        for request in self.dialling.remove(&peer).into_iter().flat_map(|dialling| dialling.requests) {
            self.request_on(peer, connection, request);
        }
    }

    /// Ends the streams of a connection that closed or is no longer trusted to work, and opens no more on it. Closing the
    /// connection itself can take long: a dead peer does not take what is left to send.
    pub(crate) fn abandon(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(closer) = self.closers.remove(&connection) {
            closer.cancel();
        }
        if let Some(all) = self.connections.get_mut(&peer) {
            all.retain(|known| *known != connection);
            if all.is_empty() {
                self.connections.remove(&peer);
            }
        }
    }

    fn on_dial_failure(&mut self, peer: PeerId, attempt: ConnectionId, error: &DialError) {
        let Some(mut dialling) = self.dialling.remove(&peer) else { return };
        if dialling.attempt != attempt {
            self.dialling.insert(peer, dialling);
            return;
        }
        // That no further address is known says nothing beside what happened at the ones that were.
        if dialling.failures.is_empty() || !matches!(error, DialError::NoAddresses) {
            dialling.failures.push(describe_dial_error(error));
        }
        dialling.requests.retain(|request| !request.reply.is_closed());
        if let Some(rest) = dialling.rest.take()
            && !dialling.requests.is_empty()
        {
            let attempt = self.dial(peer, rest, true);
            self.dialling.insert(peer, Dialling { attempt, ..dialling });
            return;
        }
        let reason = dialling.failures.join("; ");
        for request in dialling.requests {
            let _ = request.reply.send(Err(OpenFailure::Unreachable(reason.clone())));
        }
    }

    fn handler(&mut self, peer: PeerId, connection: ConnectionId) -> Handler {
        let closer = CancellationToken::new();
        self.closers.insert(connection, closer.clone());
        Handler::new(peer, self.protocol.clone(), self.incoming.clone(), Arc::clone(&self.admission), closer)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, connection))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, connection))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(made) => self.on_connected(made.peer_id, made.connection_id),
            FromSwarm::ConnectionClosed(closed) => self.abandon(closed.peer_id, closed.connection_id),
            // Another behaviour may refuse a connection after this one made a handler for it.
            FromSwarm::ListenFailure(failed) => drop(self.closers.remove(&failed.connection_id)),
            FromSwarm::DialFailure(failed) => {
                self.closers.remove(&failed.connection_id);
                if let Some(peer) = failed.peer_id {
                    self.on_dial_failure(peer, failed.connection_id, failed.error);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        core::util::unreachable(event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
