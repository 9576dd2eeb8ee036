//! The protocols a node speaks.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, StreamProtocol, autonat, connection_limits, dcutr, identify, kad, ping, relay, upnp};

use crate::asked::Asked;
use crate::carried::Carried;
use crate::config::{RelayLimits, SwarmConfig, SwarmMode};
use crate::guard;
use crate::identity::Identity;
use crate::neighbours::Neighbours;
use crate::store::{DirectoryStore, PROVIDER_TTL};
use crate::streams;

/// A hash table of our own: never mixed with that of another project.
pub(crate) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/petals-rs/kad/1");
const IDENTIFY_PROTOCOL: &str = "/petals-rs/1";
const AGENT: &str = concat!("petals-rs/", env!("CARGO_PKG_VERSION"));

/// Connections to one peer. Two that dial each other at the same time have two, one over TCP and one over QUIC each; probes
/// of addresses and the attempts of hole punching add to them, and the rest is for a change of address.
const MAX_CONNECTIONS_PER_PEER: u32 = 8;
/// Connections that others made. Each costs two file descriptors at most and some tens of KiB.
const MAX_INCOMING: u32 = 2048;
/// Handshakes in progress, each way.
const MAX_PENDING: u32 = 256;
/// A query gives up after this. Its result is complete or useless long before.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between refreshes of the routing table. Announcements, which go to random places, keep it fresh between them.
const BOOTSTRAP_PERIOD: Duration = Duration::from_secs(300);
/// Nodes that keep each record and each block's list. Kademlia's usual choice is 20, for values that are written once in hours;
/// here they are written every one to three minutes, and who keeps them costs connections more than anything else.
const REPLICATION: NonZeroUsize = const { NonZeroUsize::new(12).expect("not zero") };

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    guard: guard::Behaviour,
    pub(crate) kad: Asked<kad::Behaviour<DirectoryStore>>,
    pub(crate) identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) streams: streams::Behaviour,
    /// Streams on which files of models are passed on.
    pub(crate) contents: streams::Behaviour,
    relay_client: relay::client::Behaviour,
    pub(crate) relay_server: Toggle<relay::Behaviour>,
    hole_punching: dcutr::Behaviour,
    /// Asks others whether they reach this node.
    probes: Toggle<autonat::v2::client::Behaviour>,
    /// Answers others who ask that.
    probed: Toggle<autonat::v2::server::Behaviour>,
    upnp: Toggle<upnp::tokio::Behaviour>,
    mdns: Toggle<Neighbours>,
}

impl Behaviour {
    pub(crate) fn new(
        identity: &Identity,
        config: &SwarmConfig,
        (streams, contents): (streams::Behaviour, streams::Behaviour),
        carried: &Carried,
        relay_client: relay::client::Behaviour,
    ) -> Self {
        let local = identity.peer_id();
        let is_server = config.mode == SwarmMode::Server;
        let on = |wanted: bool| wanted.then_some(());
        let mdns = on(config.searches()).and_then(|()| {
            Neighbours::new(local, is_server)
                .inspect_err(|error| tracing::warn!(%error, "the local network is not searched for nodes"))
                .ok()
        });
        // Only addresses that others can use are told: see `addresses::external_addresses`.
        let identify = identify::Config::new(IDENTIFY_PROTOCOL.into(), identity.keypair().public())
            .with_agent_version(AGENT.into())
            .with_hide_listen_addrs(true);
        let ping = ping::Config::new().with_interval(config.ping_interval).with_timeout(config.ping_timeout);
        let limits = connection_limits::ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_PENDING))
            .with_max_established_incoming(Some(MAX_INCOMING))
            .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER));
        Self {
            limits: connection_limits::Behaviour::new(limits),
            guard: guard::Behaviour::new(),
            kad: Asked::new(kademlia(local, config.mode)),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            streams,
            contents,
            relay_client,
            relay_server: on(is_server && config.relay_server)
                .map(|()| relay::Behaviour::new(local, relay_config(&config.relay_limits, carried)))
                .into(),
            hole_punching: dcutr::Behaviour::new(local),
            probes: on(config.probes() || config.probes_announced())
                .map(|()| autonat::v2::client::Behaviour::default())
                .into(),
            probed: on(is_server).map(|()| autonat::v2::server::Behaviour::default()).into(),
            upnp: on(is_server && config.upnp && config.leaves_machine())
                .map(|()| upnp::tokio::Behaviour::default())
                .into(),
            mdns: mdns.into(),
        }
    }
}

impl Behaviour {
    /// What asks others whether they reach this node, if it does.
    pub(crate) fn probes_mut(&mut self) -> Option<&mut autonat::v2::client::Behaviour> {
        self.probes.as_mut()
    }
}

fn relay_config(limits: &RelayLimits, carried: &Carried) -> relay::Config {
    // One request is refilled each `interval`.
    let interval = Duration::from_secs(60) / limits.requests_per_minute.get();
    let per_peer = limits.requests_per_minute;
    let per_address = per_peer.saturating_mul(const { NonZeroU32::new(4).expect("not zero") });
    let config = relay::Config {
        max_reservations: limits.reservations,
        max_reservations_per_peer: 4,
        reservation_rate_limiters: Vec::new(),
        max_circuits: limits.circuits,
        max_circuits_per_peer: limits.circuits_per_peer,
        max_circuit_duration: limits.circuit_duration,
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let mut config = config
        .reservation_rate_per_peer(per_peer, interval)
        .reservation_rate_per_ip(per_address, interval / 4)
        .circuit_src_per_peer(per_peer, interval)
        .circuit_src_per_ip(per_address, interval / 4);
    // Behind the others: what is asked here counts.
    config.reservation_rate_limiters.push(carried.ask_reservation());
    config.circuit_src_rate_limiters.push(carried.ask_circuit());
    config
}

fn kademlia(local: PeerId, mode: SwarmMode) -> kad::Behaviour<DirectoryStore> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_replication_factor(REPLICATION)
        .set_periodic_bootstrap_interval(Some(BOOTSTRAP_PERIOD))
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_caching(kad::Caching::Disabled)
        // The announcer repeats what this node says, with a new signature each time; nobody repeats for others.
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None);
    let mut kad = kad::Behaviour::with_config(local, DirectoryStore::new(local), config);
    kad.set_mode(Some(match mode {
        SwarmMode::Server => kad::Mode::Server,
        SwarmMode::Client => kad::Mode::Client,
    }));
    kad
}
