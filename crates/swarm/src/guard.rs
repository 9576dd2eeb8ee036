//! Bounds what one address may ask of this node before it has said who it is.
//!
//! A handshake costs a signature and a key exchange, a connection some tens of KiB and a file descriptor. Limits for each peer do
//! not bound that: ids are free, addresses are not.

use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId, core};
use tokio::time::Instant;

use crate::addresses::{is_circuit, is_loopback};
use crate::rates::Rates;
use crate::shares::Origin;

/// Connections from one address (of IPv6 from one net of 64 bits), those in their handshake included. 64: a whole institute behind one router.
const MAX_PER_ADDRESS: usize = 64;
/// New connections from one address: at once, and per second afterwards.
const BURST: u32 = 128;
const PER_SECOND: u32 = 8;

/// Counts inbound connections by address.
#[derive(Debug)]
pub(crate) struct Behaviour {
    connections: HashMap<ConnectionId, Origin>,
    counts: HashMap<Origin, usize>,
    rates: Rates<Origin>,
}

/// Why a connection is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0} has {MAX_PER_ADDRESS} connections already")]
    TooMany(Origin),
    #[error("{0} connects too often")]
    TooOften(Origin),
}

impl Behaviour {
    pub(crate) fn new() -> Self {
        Self { connections: HashMap::new(), counts: HashMap::new(), rates: Rates::new(BURST, PER_SECOND) }
    }

    fn admit(&mut self, connection: ConnectionId, origin: Origin, now: Instant) -> Result<(), Refused> {
        if self.counts.get(&origin).is_some_and(|count| *count >= MAX_PER_ADDRESS) {
            return Err(Refused::TooMany(origin));
        }
        if !self.rates.take(origin, now) {
            return Err(Refused::TooOften(origin));
        }
        *self.counts.entry(origin).or_default() += 1;
        self.connections.insert(connection, origin);
        Ok(())
    }

    fn release(&mut self, connection: ConnectionId) {
        let Some(origin) = self.connections.remove(&connection) else { return };
        if let Some(count) = self.counts.get_mut(&origin) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&origin);
            }
        }
    }
}

/// The address behind a direct connection. Those of one's own machine are not bounded, and those that come through a relay
/// are the relay's business.
fn foreign(address: &Multiaddr) -> Option<Origin> {
    let origin = Origin::of_address(address);
    (origin != Origin::Unknown && !is_loopback(address) && !is_circuit(address)).then_some(origin)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        match foreign(remote).filter(|_| !is_circuit(local)) {
            Some(origin) => self.admit(connection, origin, Instant::now()).map_err(ConnectionDenied::new),
            None => Ok(()),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.release(closed.connection_id),
            FromSwarm::ListenFailure(failed) => self.release(failed.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        core::util::unreachable(event);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(guard: &mut Behaviour, number: usize, remote: &str) -> bool {
        let local = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        let remote = remote.parse().unwrap();
        guard.handle_pending_inbound_connection(ConnectionId::new_unchecked(number), &local, &remote).is_ok()
    }

    #[test]
    fn one_address_has_a_bounded_number_of_connections_at_a_bounded_rate() {
        let mut guard = Behaviour::new();
        let admitted = (0..100).filter(|n| connect(&mut guard, *n, "/ip4/10.0.0.2/tcp/5")).count();
        assert_eq!(admitted, MAX_PER_ADDRESS);
        assert!(connect(&mut guard, 1000, "/ip4/10.0.0.3/tcp/5"), "others are not affected");
        (0..100).for_each(|n| guard.release(ConnectionId::new_unchecked(n)));
        assert!(connect(&mut guard, 1001, "/ip4/10.0.0.2/tcp/5"));
        for round in 2..20 {
            for n in 0..50 {
                connect(&mut guard, round * 10_000 + n, "/ip4/10.0.0.2/tcp/5");
                guard.release(ConnectionId::new_unchecked(round * 10_000 + n));
            }
        }
        assert!(!connect(&mut guard, 1, "/ip4/10.0.0.2/tcp/5"), "too often");
        assert!(guard.connections.len() <= 3);
        assert!((0..1000).all(|n| connect(&mut guard, 1_000_000 + n, "/ip4/127.0.0.1/tcp/5")));
    }

    #[test]
    fn a_net_of_ipv6_counts_as_one_address() {
        let mut guard = Behaviour::new();
        let address = |n: usize| format!("/ip6/2001:db8::{n:x}/tcp/5");
        assert_eq!((0..100).filter(|n| connect(&mut guard, *n, &address(*n))).count(), MAX_PER_ADDRESS);
        assert!(connect(&mut guard, 1000, "/ip6/2001:db8:0:1::1/tcp/5"), "another net");
    }
}
