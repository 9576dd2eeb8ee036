//! What the event loop does when something happens on the network. Nothing here panics on what comes from outside.

use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, dcutr, identify, kad, ping, relay, upnp};
use petals_protocol::WireVersion;
use tokio::time::Instant;

use super::{EventLoop, Remote};
use crate::addresses::{
    believable, external_addresses, is_circuit, is_loopback, is_tcp, network_of, short, without_peer,
};
use crate::behaviour::{BehaviourEvent, KAD_PROTOCOL};
use crate::config::SwarmMode;
use crate::node::reach::Reachability;
use crate::store::Origin;
use crate::streams::describe_dial_error;

impl EventLoop {
    pub(in crate::node) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.on_identify_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::Behaviour(BehaviourEvent::Probes(event)) => self.on_probe(&event),
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(event)) => self.on_relay_client(&event),
            SwarmEvent::Behaviour(BehaviourEvent::RelayServer(event)) => self.carried.on_event(&event),
            SwarmEvent::Behaviour(BehaviourEvent::HolePunching(event)) => on_hole_punching(&event),
            SwarmEvent::Behaviour(BehaviourEvent::Upnp(event)) => on_upnp(&event),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.on_mdns(event),
            SwarmEvent::ExternalAddrConfirmed { address } => {
                self.reach.on_confirmed(&address);
                self.refresh_addresses();
                self.refresh_reachability();
            }
            SwarmEvent::ExternalAddrExpired { address } => {
                self.reach.on_expired(&address);
                self.refresh_addresses();
                self.refresh_reachability();
            }
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
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error, .. } => {
                self.on_meeting_failed(connection_id, &error, Instant::now());
                self.on_dial_error(peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error: ListenError::LocalPeerId { .. }, .. } => self.on_own_call(),
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.refresh_addresses();
            }
            SwarmEvent::ExpiredListenAddr { .. } => self.refresh_addresses(),
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                self.on_listener_closed(listener_id, &addresses, &reason);
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        self.on_met(connection);
        tracing::debug!(peer = short(&peer), address = %endpoint.get_remote_address(), "connected");
        let address = without_peer(endpoint.get_remote_address());
        // One that comes in while there is a circuit to the same peer may have been made by hole punching.
        let known = self.remotes.values().any(|remote| remote.peer == peer);
        if matches!(endpoint, ConnectedPoint::Listener { local_addr, .. } if !is_circuit(local_addr)) && !known {
            self.reach.on_reached();
            self.update_relay_server();
        }
        let dialled = endpoint.is_dialer();
        if dialled {
            self.targets.with(|targets| targets.is_node(&address));
        }
        self.remotes.insert(connection, Remote { peer, address, dialled, alive: Some(Instant::now()) });
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
        self.reach.on_no_relay(&peer);
        self.on_member_gone(&peer);
        self.view.send_modify(|view| {
            view.peers.remove(&peer);
            view.wire.remove(&peer);
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
            if let Some(member) = self.swarm.behaviour_mut().kad.remove_peer(&peer) {
                let addresses = member.node.value.into_vec();
                self.dialler.lost(peer, addresses, Instant::now());
            }
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
            let behaviour = self.swarm.behaviour_mut();
            behaviour.streams.abandon(peer, connection);
            behaviour.contents.abandon(peer, connection);
            self.swarm.close_connection(connection);
        }
    }

    fn on_identify_event(&mut self, event: identify::Event) {
        let (identify::Event::Received { peer_id, connection_id, info }
        | identify::Event::Pushed { peer_id, connection_id, info }) = event
        else {
            return;
        };
        let spoken = info.protocols.iter().filter_map(|protocol| WireVersion::of_protocol(protocol.as_ref())).collect();
        self.view.send_modify(|view| {
            if view.peers.contains_key(&peer_id) {
                view.wire.insert(peer_id, spoken);
            }
        });
        self.note_relay(peer_id, connection_id, info.protocols.contains(&relay::HOP_PROTOCOL_NAME));
        if !info.protocols.contains(&KAD_PROTOCOL) {
            // A node that others do not reach directly stops being a member of the hash table, and stays one of the swarm.
            if self.dialler.addresses(&peer_id).is_empty() {
                self.swarm.behaviour_mut().kad.remove_peer(&peer_id);
                self.on_member_gone(&peer_id);
            }
            return;
        }
        let peer_is_local = self.remotes.get(&connection_id).is_some_and(|remote| is_loopback(&remote.address));
        let addresses = believable(info.listen_addrs, peer_is_local);
        // Whoever has a TCP address is not dialled over QUIC: the connection made first is the one that streams use.
        self.on_member(peer_id, &addresses);
        let has_tcp = addresses.iter().any(|address| is_tcp(address) && !is_circuit(address));
        for address in addresses.into_iter().filter(|address| !has_tcp || is_tcp(address)) {
            self.swarm.behaviour_mut().kad.add_address(&peer_id, address);
        }
    }

    fn on_kad_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.on_query_progress(id, result, step.last);
            }
            kad::Event::RoutingUpdated { is_new_peer: true, peer, .. } => {
                tracing::debug!(peer = short(&peer), "a node joined the routing table");
                self.announce_to_newcomers();
            }
            kad::Event::InboundRequest { request } => {
                self.directory.count(&request);
                self.on_kad_request(request);
            }
            _ => {}
        }
    }

    fn on_kad_request(&mut self, request: kad::InboundRequest) {
        let source = match &request {
            kad::InboundRequest::PutRecord { source, .. } => Some(*source),
            kad::InboundRequest::AddProvider { record: Some(entry) } => Some(entry.provider),
            _ => None,
        };
        if let Some(source) = source
            && !self.keeping.take(source, Instant::now())
        {
            // Checking what it sends costs more than telling it to go.
            tracing::warn!(peer = short(&source), "announces far more than a server has to say, disconnecting");
            let _ = self.swarm.disconnect_peer_id(source);
            return;
        }
        let origin = source.map(|source| self.origin(source));
        let store = self.swarm.behaviour_mut().kad.store_mut();
        let result = match request {
            kad::InboundRequest::PutRecord { source, record: Some(record), .. } => {
                store.insert(record, origin.unwrap_or(Origin::Peer(source))).map_err(|error| (source, error))
            }
            // Kademlia hands on only entries that come from the provider itself.
            kad::InboundRequest::AddProvider { record: Some(entry) } => {
                let source = entry.provider;
                let origin = origin.unwrap_or(Origin::Peer(source));
                store.insert_provider(entry, origin).map_err(|error| (source, error))
            }
            _ => Ok(()),
        };
        if let Err((source, error)) = result {
            tracing::debug!(from = short(&source), %error, "refused a record");
        }
    }

    /// What a connected peer's part of the hash table is accounted to.
    fn origin(&self, peer: PeerId) -> Origin {
        let mut addresses = self.remotes.values().filter(|remote| remote.peer == peer).map(|remote| &remote.address);
        addresses
            .find_map(|address| network_of(std::slice::from_ref(address)))
            .map_or(Origin::Peer(peer), Origin::Network)
    }

    pub(super) fn listening(&self) -> Vec<Multiaddr> {
        self.swarm.listeners().cloned().collect()
    }

    /// Tells everyone concerned where this node is now.
    pub(super) fn refresh_addresses(&mut self) {
        let listening = self.listening();
        self.targets.with(|targets| targets.listen_at(&listening));
        let external = self.external();
        let known: Vec<_> = self.swarm.external_addresses().cloned().collect();
        if known.len() != external.len() || known.iter().any(|address| !external.contains(address)) {
            known.iter().for_each(|address| self.swarm.remove_external_address(address));
            external.iter().for_each(|address| self.swarm.add_external_address(address.clone()));
            let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
            self.swarm.behaviour_mut().identify.push(peers);
            // Provider entries carry addresses, and those without any are handed on to nobody.
            self.publisher.forget();
            self.announcer.hurry(Instant::now());
        }
        let local = self.identity.peer_id();
        let with_peer = |address: &Multiaddr| without_peer(address).with(Protocol::P2p(local));
        let announced = self.reach.announced();
        self.view.send_modify(|view| {
            view.announced = announced;
            view.listen = listening.iter().map(with_peer).collect();
            view.external = external.iter().map(with_peer).collect();
        });
        self.offer_addresses();
        self.update_relay_server();
    }

    /// Where this node is reached is where a peer behind NAT can meet it half-way.
    fn offer_addresses(&mut self) {
        if self.reach.reachability() == Reachability::Direct {
            let direct = self.external().into_iter().filter(|address| !is_circuit(address));
            let streams = &mut self.swarm.behaviour_mut().streams;
            direct.for_each(|address| streams.offer_address(address));
        }
    }

    /// What others are told. A client tells nothing: nobody is to look for it.
    pub(super) fn external(&self) -> Vec<Multiaddr> {
        if self.config.mode == SwarmMode::Client {
            return Vec::new();
        }
        let mut found = self.listening();
        found.extend(self.reach.confirmed().cloned());
        external_addresses(&self.config.announce, &found)
    }

    pub(super) fn refresh_reachability(&mut self) {
        let now = self.reach.reachability();
        if self.view.borrow().reachability == now {
            return;
        }
        tracing::debug!(reachability = ?now, "found out whether others reach this node");
        self.view.send_modify(|view| view.reachability = now);
        if self.config.mode == SwarmMode::Server {
            // What the hash table keeps must be where others find it without a relay.
            let mode = if now == Reachability::Unreachable { kad::Mode::Client } else { kad::Mode::Server };
            self.swarm.behaviour_mut().kad.set_mode(Some(mode));
        }
        self.offer_addresses();
        self.update_relay_server();
        self.ask_relays(Instant::now());
        self.announcer.hurry(Instant::now());
    }

    fn update_relay_server(&mut self) {
        let carries = self.reach.can_relay();
        if let Some(server) = self.swarm.behaviour_mut().relay_server.as_mut() {
            server.set_status(Some(if carries { relay::Status::Enable } else { relay::Status::Disable }));
        }
    }

    /// Remembers who carries traffic for others, and at which address this node reaches them.
    fn note_relay(&mut self, peer: PeerId, connection: ConnectionId, carries: bool) {
        let Some(remote) = self.remotes.get(&connection) else { return };
        let usable = carries && remote.dialled && !is_circuit(&remote.address);
        if usable {
            let is_configured = !self.dialler.addresses(&peer).is_empty();
            self.reach.on_relay(peer, remote.address.clone(), is_configured, Instant::now());
        } else if !carries {
            self.reach.on_no_relay(&peer);
        }
    }

    pub(super) fn ask_relays(&mut self, now: Instant) {
        for (relay, address) in self.reach.take_due(now) {
            match self.swarm.listen_on(address.clone()) {
                Ok(listener) => self.reach.on_asked(listener, relay),
                Err(error) => tracing::debug!(%address, %error, "cannot ask that relay"),
            }
        }
    }

    fn on_relay_client(&mut self, event: &relay::client::Event) {
        if let relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal, .. } = event {
            self.reach.on_reserved(relay_peer_id);
            if !renewal {
                tracing::info!(relay = short(relay_peer_id), "reachable through a relay");
            }
        }
    }

    fn on_listener_closed(&mut self, id: ListenerId, addresses: &[Multiaddr], reason: &std::io::Result<()>) {
        match (self.reach.on_listener_closed(id, Instant::now()), reason) {
            (Some(relay), reason) => {
                tracing::info!(relay = short(&relay), ?reason, "no longer reachable through a relay")
            }
            (None, Err(error)) => tracing::error!(?addresses, %error, "a listener failed"),
            (None, Ok(())) => {}
        }
        self.refresh_addresses();
    }

    /// Ends circuits that a direct connection has replaced.
    pub(super) fn close_superfluous_connections(&mut self) {
        for connection in self.swarm.behaviour().streams.superfluous() {
            self.swarm.close_connection(connection);
        }
    }
}

fn on_hole_punching(event: &dcutr::Event) {
    let peer = short(&event.remote_peer_id);
    match &event.result {
        Ok(_) => tracing::info!(peer, "connected directly to a peer behind NAT"),
        Err(error) => tracing::debug!(peer, %error, "no direct connection, the relay stays"),
    }
}

fn on_upnp(event: &upnp::Event) {
    match event {
        upnp::Event::NewExternalAddr { external_addr, .. } => {
            tracing::info!(address = %external_addr, "the router forwards a port");
        }
        upnp::Event::ExpiredExternalAddr { external_addr, .. } => {
            tracing::info!(address = %external_addr, "the router does not forward a port any more");
        }
        upnp::Event::GatewayNotFound => tracing::debug!("no router with UPnP"),
        upnp::Event::NonRoutableGateway => tracing::debug!("the router with UPnP has no public address itself"),
    }
}
