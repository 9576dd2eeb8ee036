//! The protocols a node speaks. Relays, NAT traversal or local discovery would be further fields here.

use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, StreamProtocol, connection_limits, identify, kad, ping};

use crate::config::{SwarmConfig, SwarmMode};
use crate::identity::Identity;
use crate::store::{DirectoryStore, PROVIDER_TTL};
use crate::streams;

/// A hash table of our own: never mixed with that of another project.
pub(crate) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/petals-rs/kad/1");
const IDENTIFY_PROTOCOL: &str = "/petals-rs/1";
const AGENT: &str = concat!("petals-rs/", env!("CARGO_PKG_VERSION"));

/// Connections to one peer. Two that dial each other at the same time have two; the rest is for a change of address.
const MAX_CONNECTIONS_PER_PEER: u32 = 4;
/// Connections that others made. Each costs two file descriptors at most and some tens of KiB.
const MAX_INCOMING: u32 = 2048;
/// Handshakes in progress, each way.
const MAX_PENDING: u32 = 256;
/// A query gives up after this. Its result is complete or useless long before.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between refreshes of the routing table.
const BOOTSTRAP_PERIOD: Duration = Duration::from_secs(120);
/// Nodes that keep each record. 20 is Kademlia's usual choice.
const REPLICATION: NonZeroUsize = kad::K_VALUE;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(crate) kad: kad::Behaviour<DirectoryStore>,
    pub(crate) identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) streams: streams::Behaviour,
}

impl Behaviour {
    pub(crate) fn new(identity: &Identity, config: &SwarmConfig, streams: streams::Behaviour) -> Self {
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
            kad: kademlia(identity.peer_id(), config.mode),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            streams,
        }
    }
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
