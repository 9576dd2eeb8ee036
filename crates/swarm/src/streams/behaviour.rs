//! The part of the stream protocol that knows all connections: finds the best one for each request, or dials.

mod dialling;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use libp2p::core::transport::PortUse;
use libp2p::core::{self, Endpoint};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::dial_error::describe_dial_error;
use super::handler::{Handler, Spoken};
use super::{Admission, AllowList, IncomingStream, Link, OpenFailure, OpenRequest};
use crate::addresses::{is_circuit, is_tcp};
use crate::shares::Origin;
use dialling::Dialling;

/// References to a link that are held by no stream: the behaviour's and the handler's.
const WITHOUT_STREAMS: usize = 2;

/// Opens streams to peers, and hands over those that peers open.
#[derive(Debug)]
pub(crate) struct Behaviour {
    spoken: Spoken,
    incoming: Option<mpsc::Sender<IncomingStream>>,
    admission: Arc<Admission>,
    /// Whose streams are taken, everybody's if `None`.
    allowed: AllowList,
    /// Of each peer the best first.
    connections: HashMap<PeerId, Vec<Connection>>,
    /// What the streams of each connection share.
    links: HashMap<ConnectionId, Arc<Link>>,
    dialling: HashMap<PeerId, Dialling>,
    /// Wakes this behaviour when a waiting request is to try relays as well.
    alarm: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    events: VecDeque<ToSwarm<Infallible, OpenRequest>>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    /// Lower is better.
    rank: Rank,
}

/// TCP moves more bytes per second than QUIC over a good link; what goes through a relay moves through three machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Tcp,
    OtherDirect,
    Relayed,
}

impl Rank {
    fn of(address: &Multiaddr) -> Self {
        match (is_circuit(address), is_tcp(address)) {
            (true, _) => Self::Relayed,
            (false, true) => Self::Tcp,
            (false, false) => Self::OtherDirect,
        }
    }
}

impl Behaviour {
    /// Streams of one kind.
    pub(crate) fn new(
        spoken: Spoken,
        incoming: Option<mpsc::Sender<IncomingStream>>,
        admission: Arc<Admission>,
        allowed: AllowList,
    ) -> Self {
        Self {
            spoken,
            incoming,
            admission,
            allowed,
            connections: HashMap::new(),
            links: HashMap::new(),
            dialling: HashMap::new(),
            alarm: None,
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream, over a new connection if there is none; see [`Dialling`] for which addresses are tried when.
    pub(crate) fn open(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, request: OpenRequest) {
        self.forget_ended(peer);
        if let Some(connection) = self.connections.get(&peer).and_then(|all| all.first()) {
            self.request_on(peer, connection.id, request);
        } else if let Some(dialling) = self.dialling.get_mut(&peer) {
            dialling.requests.push(request);
        } else {
            let mut dialling = Dialling::new(addresses, request, Instant::now());
            self.events.extend(dialling.next(peer).map(|opts| ToSwarm::Dial { opts }));
            self.dialling.insert(peer, dialling);
            self.set_alarm();
        }
        self.wake();
    }

    /// Lets hole punching know of an address of this node. It hears only of addresses at which others see a node that has not
    /// told them, which leaves out those that are told.
    pub(crate) fn offer_address(&mut self, address: Multiaddr) {
        self.events.push_back(ToSwarm::NewExternalAddrCandidate(address));
        self.wake();
    }

    fn request_on(&mut self, peer_id: PeerId, connection: ConnectionId, event: OpenRequest) {
        self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
    }

    /// Passes over connections of a peer that have ended, which is told a moment later: whoever is told by its stream asks for another one at once.
    fn forget_ended(&mut self, peer: PeerId) {
        let Some(all) = self.connections.get_mut(&peer) else { return };
        all.retain(|known| self.links.get(&known.id).is_none_or(|link| !link.closed.is_cancelled()));
        if all.is_empty() {
            self.connections.remove(&peer);
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, address: &Multiaddr) {
        self.forget_ended(peer);
        let rank = Rank::of(address);
        let all = self.connections.entry(peer).or_default();
        all.insert(all.partition_point(|other| other.rank <= rank), Connection { id, rank });
        let best = all[0].id;
        self.mark_outdated(peer);
        for request in self.dialling.remove(&peer).into_iter().flat_map(|dialling| dialling.requests) {
            self.request_on(peer, best, request);
        }
    }

    /// Streams through a relay learn whether there is a direct connection.
    fn mark_outdated(&self, peer: PeerId) {
        let Some(all) = self.connections.get(&peer) else { return };
        let direct = all.iter().any(|connection| connection.rank < Rank::Relayed);
        for connection in all.iter().filter(|connection| connection.rank == Rank::Relayed) {
            if let Some(link) = self.links.get(&connection.id) {
                link.outdated.store(direct, Ordering::Relaxed);
            }
        }
    }

    /// Connections through relays that no stream uses and that a direct one has replaced: they take a relay's room.
    pub(crate) fn superfluous(&self) -> Vec<ConnectionId> {
        let superfluous =
            |link: &Arc<Link>| link.outdated.load(Ordering::Relaxed) && Arc::strong_count(link) <= WITHOUT_STREAMS;
        self.links.iter().filter(|(_, link)| superfluous(link)).map(|(id, _)| *id).collect()
    }

    /// Ends the streams of a connection that closed or is no longer trusted to work, and opens no more on it. Closing the
    /// connection itself can take long: a dead peer does not take what is left to send.
    pub(crate) fn abandon(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(link) = self.links.remove(&connection) {
            link.closed.cancel();
        }
        if let Some(all) = self.connections.get_mut(&peer) {
            all.retain(|known| known.id != connection);
            if all.is_empty() {
                self.connections.remove(&peer);
            }
        }
        self.mark_outdated(peer);
    }

    fn on_dial_failure(&mut self, peer: PeerId, attempt: ConnectionId, error: &DialError) {
        let Some(dialling) = self.dialling.get_mut(&peer) else { return };
        if !dialling.failed(attempt, error, Instant::now(), describe_dial_error) {
            return;
        }
        if let Some(opts) = dialling.next(peer) {
            self.events.push_back(ToSwarm::Dial { opts });
        } else if !dialling.is_trying()
            && let Some(dialling) = self.dialling.remove(&peer)
        {
            let reason = dialling.reason();
            for request in dialling.requests {
                let _ = request.reply.send(Err(OpenFailure::Unreachable(reason.clone())));
            }
        }
        self.set_alarm();
        self.wake();
    }

    /// Tries relays for the requests that waited for a direct connection long enough.
    fn try_relays(&mut self) {
        let now = Instant::now();
        for (peer, dialling) in &mut self.dialling {
            let attempt = dialling.next_circuits(*peer, now);
            self.events.extend(attempt.map(|opts| ToSwarm::Dial { opts }));
        }
        self.set_alarm();
    }

    fn set_alarm(&mut self) {
        let due = self.dialling.values().filter_map(Dialling::circuits_due).min();
        self.alarm = due.map(|due| Box::pin(tokio::time::sleep_until(due)));
    }

    fn handler(&mut self, peer: PeerId, connection: ConnectionId, origin: Origin, relayed: bool) -> Handler {
        let link = Link::new(origin, relayed);
        self.links.insert(connection, link.clone());
        let allowed = self.allowed.clone();
        Handler::new(peer, self.spoken.clone(), self.incoming.clone(), allowed, Arc::clone(&self.admission), link)
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
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, connection, Origin::of(local, remote), is_circuit(local)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, connection, Origin::of(address, address), is_circuit(address)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(made) => {
                let address = match made.endpoint {
                    core::ConnectedPoint::Dialer { address, .. } => address,
                    // Of a circuit, what comes in names no address of the other side.
                    core::ConnectedPoint::Listener { local_addr, .. } => local_addr,
                };
                self.on_connected(made.peer_id, made.connection_id, address);
            }
            FromSwarm::ConnectionClosed(closed) => self.abandon(closed.peer_id, closed.connection_id),
            // Another behaviour may refuse a connection after this one made a handler for it.
            FromSwarm::ListenFailure(failed) => drop(self.links.remove(&failed.connection_id)),
            FromSwarm::DialFailure(failed) => {
                self.links.remove(&failed.connection_id);
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
        while self.alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready()) {
            self.try_relays();
        }
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
