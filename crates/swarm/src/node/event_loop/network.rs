//! What the event loop does when something happens on the network. Nothing here panics on what comes from outside.

use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify, kad, ping};
use tokio::time::Instant;

use super::{EventLoop, Remote};
use crate::addresses::{believable, external_addresses, is_loopback, short, without_peer};
use crate::behaviour::{BehaviourEvent, KAD_PROTOCOL};
use crate::node::describe_dial_error;

impl EventLoop {
    pub(in crate::node) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.on_identify_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = short(&peer_id), ?cause, "connection closed");
                // Connections given up earlier are not known here any more.
                if self.remotes.remove(&connection_id).is_some() {
                    self.on_connection_lost(peer_id);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => self.on_dial_error(peer_id, &error),
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.refresh_addresses();
            }
            SwarmEvent::ExpiredListenAddr { .. } => self.refresh_addresses(),
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::error!(?addresses, %error, "a listener failed");
                self.refresh_addresses();
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        tracing::debug!(peer = short(&peer), address = %endpoint.get_remote_address(), "connected");
        let address = without_peer(endpoint.get_remote_address());
        self.remotes.insert(connection, Remote { peer, address, alive: Some(Instant::now()) });
        self.dialler.connected(&peer);
        self.view.send_modify(|view| {
            view.peers.entry(peer).or_default();
            view.failures.remove(&peer);
        });
        // Configured peers are members of the hash table; waiting until they say so would delay the first lookup.
        for address in self.dialler.addresses(&peer) {
            self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
        }
    }

    fn on_connection_lost(&mut self, peer: PeerId) {
        if self.remotes.values().any(|remote| remote.peer == peer) {
            return;
        }
        self.dialler.disconnected(&peer, Instant::now());
        self.view.send_modify(|view| {
            view.peers.remove(&peer);
        });
    }

    pub(super) fn on_dial_error(&mut self, peer: Option<PeerId>, error: &DialError) {
        let Some(peer) = peer else { return };
        if matches!(error, DialError::DialPeerConditionFalse(_) | DialError::Denied { .. } | DialError::Aborted) {
            return;
        }
        let reason = describe_dial_error(error);
        tracing::debug!(peer = short(&peer), reason, "dial failed");
        if !self.swarm.is_connected(&peer) {
            // A dead member would cost every query an attempt. It is added again when it is met again.
            self.swarm.behaviour_mut().kad.remove_peer(&peer);
        }
        self.view.send_modify(|view| {
            if view.wanted.contains(&peer) {
                view.failures.insert(peer, reason);
            }
        });
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(remote) = self.remotes.get_mut(&event.connection) else { return };
        match event.result {
            Ok(round_trip) => {
                remote.alive = Some(Instant::now());
                self.view.send_modify(|view| {
                    if let Some(last) = view.peers.get_mut(&event.peer) {
                        *last = Some(round_trip);
                    }
                });
            }
            Err(ping::Failure::Unsupported) => remote.alive = None,
            Err(error) => tracing::debug!(peer = short(&event.peer), %error, "ping failed"),
        }
    }

    /// A peer that vanished without a word is noticed by its silence. The ping protocol reports only the second failure in
    /// a row, and takes a fixed 10 s to give up the second, so the time since the last success is what counts.
    pub(super) fn close_silent_connections(&mut self, now: Instant) {
        let patience = self.config.ping_interval + self.config.ping_timeout;
        let silent = |remote: &Remote| remote.alive.is_some_and(|alive| now > alive + patience);
        let silent: Vec<_> = self.remotes.extract_if(|_, remote| silent(remote)).collect();
        for (connection, Remote { peer, .. }) in silent {
            tracing::info!(peer = short(&peer), ?patience, "closing a connection whose pings stay unanswered");
            // First what handles see: whoever is woken by the end of a stream must not be told that the peer is there.
            self.on_connection_lost(peer);
            self.swarm.behaviour_mut().streams.abandon(peer, connection);
            self.swarm.close_connection(connection);
        }
    }

    fn on_identify_event(&mut self, event: identify::Event) {
        let (identify::Event::Received { peer_id, connection_id, info }
        | identify::Event::Pushed { peer_id, connection_id, info }) = event
        else {
            return;
        };
        if !info.protocols.contains(&KAD_PROTOCOL) {
            return;
        }
        let peer_is_local = self.remotes.get(&connection_id).is_some_and(|remote| is_loopback(&remote.address));
        for address in believable(info.listen_addrs, peer_is_local) {
            self.swarm.behaviour_mut().kad.add_address(&peer_id, address);
        }
    }

    fn on_kad_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.queries.on_progress(&id, result, step.last);
            }
            kad::Event::RoutingUpdated { is_new_peer: true, peer, .. } => {
                tracing::debug!(peer = short(&peer), "a node joined the routing table");
                self.announcer.hurry(Instant::now());
            }
            kad::Event::InboundRequest { request } => self.on_kad_request(request),
            _ => {}
        }
    }

    fn on_kad_request(&mut self, request: kad::InboundRequest) {
        let store = self.swarm.behaviour_mut().kad.store_mut();
        let result = match request {
            kad::InboundRequest::PutRecord { source, record: Some(record), .. } => {
                store.insert(record).map_err(|error| (source, error))
            }
            // Kademlia hands on only entries that come from the provider itself.
            kad::InboundRequest::AddProvider { record: Some(entry) } => {
                let source = entry.provider;
                store.insert_provider(entry).map_err(|error| (source, error))
            }
            _ => Ok(()),
        };
        if let Err((source, error)) = result {
            tracing::debug!(from = short(&source), %error, "refused a record");
        }
    }

    pub(super) fn listening(&self) -> Vec<Multiaddr> {
        self.swarm.listeners().cloned().collect()
    }

    /// Tells everyone concerned where this node is now.
    pub(super) fn refresh_addresses(&mut self) {
        let listening = self.listening();
        let external = external_addresses(&self.config.announce, &listening);
        let known: Vec<_> = self.swarm.external_addresses().cloned().collect();
        if known.len() != external.len() || known.iter().any(|address| !external.contains(address)) {
            known.iter().for_each(|address| self.swarm.remove_external_address(address));
            external.iter().for_each(|address| self.swarm.add_external_address(address.clone()));
            let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
            self.swarm.behaviour_mut().identify.push(peers);
            self.announcer.hurry(Instant::now());
        }
        let local = self.identity.peer_id();
        let with_peer = |address: &Multiaddr| without_peer(address).with(Protocol::P2p(local));
        self.view.send_modify(|view| {
            view.listen = listening.iter().map(with_peer).collect();
            view.external = external.iter().map(with_peer).collect();
        });
    }
}
