//! Bounds what others may ask of the hash table.
//!
//! A request costs a stream, a search of the routing table and an answer, some 0.2 ms of a processor in all, and ids that ask are free. So addresses take
//! turns ([`turns`]): each may ask for what honest nodes need without waiting for anybody, and beyond that all of them share what a node spares
//! for the table. Whoever asks for more waits, and nothing that it sends is read meanwhile. That needs no number that is
//! right for everybody: as long as nobody else asks, a whole house of servers behind one router may ask for all of it.

mod handler;
mod turns;

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::{Instant, Sleep, sleep};

use crate::addresses::{is_loopback, short};
use crate::shares::Origin;
use handler::{Handler, Place, Told};
use turns::Turns;

/// Time between two looks at whose turn it is, while somebody waits.
const ROUND: Duration = Duration::from_millis(20);

/// A protocol that others ask something by, in turns.
pub(crate) struct Asked<B> {
    inner: B,
    turns: Arc<Mutex<Turns>>,
    round: Option<Pin<Box<Sleep>>>,
    /// Connections to be closed.
    floods: VecDeque<(PeerId, ConnectionId)>,
}

impl<B> Asked<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self { inner, turns: Arc::new(Mutex::new(Turns::new())), round: None, floods: VecDeque::new() }
    }

    /// Where a connection waits: programs of one's own machine wait for nobody, as in [`crate::guard`].
    fn place(&self, connection: ConnectionId, local: &Multiaddr, remote: &Multiaddr) -> Option<Place> {
        let origin = Origin::of(local, remote);
        (!is_loopback(remote)).then(|| Place { connection, origin, turns: Arc::clone(&self.turns) })
    }

    /// Calls those whose turn it is, and comes back as long as others wait.
    fn serve(&mut self, context: &mut Context<'_>) {
        loop {
            if let Some(round) = &mut self.round
                && round.as_mut().poll(context).is_pending()
            {
                return;
            }
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let waits = turns.serve(Instant::now(), context.waker());
            self.round = waits.then(|| Box::pin(sleep(ROUND)));
            if !waits {
                return;
            }
        }
    }
}

impl<B> Deref for Asked<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.inner
    }
}

impl<B> DerefMut for Asked<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Asked<B> {
    type ConnectionHandler = Handler<B::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self.inner.handle_established_inbound_connection(connection, peer, local, remote)?;
        Ok(Handler::new(inner, self.place(connection, local, remote)))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self.inner.handle_established_outbound_connection(connection, peer, address, role, port)?;
        Ok(Handler::new(inner, self.place(connection, address, address)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            Told::Inner(event) => self.inner.on_connection_handler_event(peer, connection, event),
            Told::Floods => {
                tracing::warn!(peer = short(&peer), "asks the directory without waiting for answers, disconnecting");
                self.floods.push_back((peer, connection));
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection)) = self.floods.pop_front() {
            return Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(connection) });
        }
        self.serve(context);
        self.inner.poll(context)
    }
}
