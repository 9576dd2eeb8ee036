//! What a node is told when it starts.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use petals_protocol::WireVersion;

use crate::addresses::{AddressError, is_loopback, split_peer};
use crate::member_file::MemberFile;
use crate::swarm_key::SwarmKey;

/// Part a node plays in the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwarmMode {
    /// Keeps a part of the directory and accepts streams: servers and bootstrap nodes.
    Server,
    /// Only asks: keeps nothing for others, accepts no streams and need not be reachable.
    Client,
}

/// What a relay carries for others. A circuit that reaches a limit ends; whoever used it opens another one, if the rate allows
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Nodes that may be reachable through this one. 256.
    pub reservations: usize,
    /// Circuits at a time. 128: each costs two yamux streams, so at most 64 MiB of buffers.
    pub circuits: usize,
    /// Circuits of one peer at a time. 16: a client holds one to each server of its route, and some more when it moves.
    pub circuits_per_peer: usize,
    /// Bytes of one circuit, both ways together. 16 GiB: some hours of training over a home link.
    pub circuit_bytes: u64,
    /// Life of a circuit. 4 h.
    pub circuit_duration: Duration,
    /// Circuits and reservations that one peer may ask for in a minute. 30; an address may ask for four times as many.
    pub requests_per_minute: NonZeroU32,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            reservations: 256,
            circuits: 128,
            circuits_per_peer: 16,
            circuit_bytes: 16 << 30,
            circuit_duration: Duration::from_secs(4 * 3600),
            requests_per_minute: const { NonZeroU32::new(30).expect("not zero") },
        }
    }
}

/// Settings of a node. [`SwarmConfig::server`] and [`SwarmConfig::client`] give the defaults.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Part played in the swarm.
    pub mode: SwarmMode,
    /// Where to listen. Servers: `/ip4/0.0.0.0/tcp/0`; clients: nowhere. QUIC is dialled whenever a peer offers it, and
    /// offered if listened on (`/ip4/0.0.0.0/udp/PORT/quic-v1`). It is not a default, because it moves less than half as
    /// many bytes per second as TCP over a local network.
    pub listen: Vec<Multiaddr>,
    /// Where to listen as well if this machine can: a machine without IPv6 starts all the same.
    pub listen_if_possible: Vec<Multiaddr>,
    /// What to tell others instead of the listen addresses, for nodes behind a forwarded port. Such a node takes itself for
    /// reachable; peers try these addresses, and what came of it is only told.
    pub announce: Vec<Multiaddr>,
    /// Known members of the swarm, each ending in `/p2p/` and its id. Tried again and again until one answers.
    pub peers: Vec<Multiaddr>,
    /// Where members that are met are kept for the next start. Those of the last one are tried if no peers are given, or none of them
    /// answers soon.
    pub members: Option<MemberFile>,
    /// The key of a private swarm: only nodes with the same one can connect. QUIC knows no such keys and is not used then.
    pub swarm_key: Option<SwarmKey>,
    /// Peers whose block streams are taken, all if `None`. Others of the same swarm that pass rows on must be among them.
    /// The directory answers everybody.
    pub allow_peers: Option<HashSet<PeerId>>,
    /// Versions of block streams that are spoken, the preferred one first: [`WireVersion::SPOKEN`]. With fewer the node is one of an older
    /// version of the software.
    pub wire_versions: Vec<WireVersion>,
    /// Relays to be reachable through, whatever the probes say, each ending in `/p2p/` and its id.
    pub relay_via: Vec<Multiaddr>,
    /// Whether a server that others do not reach makes itself reachable through relays that it meets.
    pub auto_relay: bool,
    /// Whether a server that others reach carries the traffic of those that they do not, within [`RelayLimits`].
    pub relay_server: bool,
    /// What is carried for others.
    pub relay_limits: RelayLimits,
    /// Whether to find nodes on the local network by multicast. Never done by a server that listens on loopback only; a client that does
    /// listens to others, and is not found itself.
    pub mdns: bool,
    /// Whether to ask the home router to forward a port. Never done by a node that listens on loopback only.
    pub upnp: bool,
    /// How often a server repeats its announcement; others forget it after twice that. 60 s: a dead server is forgotten
    /// after two minutes, at a cost of a few hundred small messages per minute.
    pub announce_period: Duration,
    /// Pause before a member of the hash table that could not be reached is tried again, doubled up to ten minutes. 30 s.
    pub redial_pause: Duration,
    /// How long one connection attempt may take. 5 s: several round trips of a very slow link.
    pub dial_timeout: Duration,
    /// Longest directory lookup; what was found until then is returned. 10 s, twice a connection attempt.
    pub lookup_timeout: Duration,
    /// Time between pings on each connection. 5 s.
    pub ping_interval: Duration,
    /// A connection is closed, which ends its streams, when a ping stays unanswered for this long. 10 s: a link full of
    /// activations delays a ping by a few seconds.
    pub ping_timeout: Duration,
    /// An unused connection is closed after this long. 10 min: training pauses (evaluation, a slow optimiser step) must
    /// not cost new handshakes.
    pub idle_timeout: Duration,
    /// Block streams that one peer may have open to this node. 16: a client needs one per pipeline stage, and a few more
    /// when it runs several jobs.
    pub max_streams_per_peer: usize,
    /// Block streams that all peers together may have open to this node. 1024.
    pub max_streams: usize,
    /// Whether others may ask this node for files of its model, on streams of their own ([`crate::SwarmHandle::take_content_streams`]).
    pub shares_contents: bool,
}

impl SwarmConfig {
    /// Defaults of a server or bootstrap node: listens for TCP on a port that the system picks.
    pub fn server() -> Self {
        Self { mode: SwarmMode::Server, listen: vec![tcp(Ipv4Addr::UNSPECIFIED)], mdns: true, ..Self::client() }
    }

    /// Listens for QUIC and over IPv6 as well, if this machine can. QUIC is for hole punching, at which it is better.
    #[must_use]
    pub fn listening_everywhere(self) -> Self {
        let ipv6 = Multiaddr::from(Ipv6Addr::UNSPECIFIED).with(Protocol::Tcp(0));
        Self { listen_if_possible: vec![ipv6, quic(Ipv4Addr::UNSPECIFIED)], ..self }
    }

    /// Defaults of a client that joins through `peers`, or without any through nodes of the local network. Unless all of them are on this
    /// machine it listens on ports that the system picks, which it tells nobody and on which it takes no block streams: only who listens
    /// can meet a server behind NAT half-way.
    pub fn client_of(peers: Vec<Multiaddr>) -> Self {
        let far = peers.is_empty() || peers.iter().any(|address| !is_loopback(address));
        let listen = if far { vec![tcp(Ipv4Addr::UNSPECIFIED), quic(Ipv4Addr::UNSPECIFIED)] } else { Vec::new() };
        Self { mdns: peers.is_empty(), peers, listen_if_possible: listen, ..Self::client() }
    }

    /// Defaults of a client: listens nowhere.
    pub fn client() -> Self {
        Self {
            mode: SwarmMode::Client,
            listen: Vec::new(),
            listen_if_possible: Vec::new(),
            announce: Vec::new(),
            peers: Vec::new(),
            members: None,
            swarm_key: None,
            allow_peers: None,
            wire_versions: WireVersion::SPOKEN.to_vec(),
            relay_via: Vec::new(),
            auto_relay: true,
            relay_server: true,
            relay_limits: RelayLimits::default(),
            mdns: false,
            upnp: true,
            announce_period: Duration::from_secs(60),
            redial_pause: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(5),
            lookup_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            max_streams_per_peer: 16,
            max_streams: 1024,
            shares_contents: false,
        }
    }

    /// How long others keep an announcement of this node.
    pub(crate) fn record_ttl(&self) -> Duration {
        self.announce_period.saturating_mul(2)
    }

    pub(crate) fn validate(&self) -> Result<(), AddressError> {
        self.peers.iter().chain(&self.relay_via).try_for_each(|address| split_peer(address).map(drop))
    }

    /// Whether other machines may talk to this node, so that multicast makes sense.
    pub(crate) fn leaves_machine(&self) -> bool {
        self.listen.iter().chain(&self.listen_if_possible).any(|address| !is_loopback(address))
    }

    /// Whether the local network is searched for nodes.
    pub(crate) fn searches(&self) -> bool {
        self.mdns && (self.mode == SwarmMode::Client || self.leaves_machine())
    }

    /// Whether others must be asked if they reach this node. Whoever can talk to a node on loopback reaches it.
    pub(crate) fn probes(&self) -> bool {
        let listens = !(self.listen.is_empty() && self.listen_if_possible.is_empty());
        self.mode == SwarmMode::Server && self.announce.is_empty() && (self.leaves_machine() || !listens)
    }

    /// Whether others are asked if they reach this node where it says it is. It is taken for reachable all the same, but the operator
    /// is told.
    pub(crate) fn probes_announced(&self) -> bool {
        self.mode == SwarmMode::Server && !self.announce.is_empty()
    }
}

fn tcp(ip: Ipv4Addr) -> Multiaddr {
    Multiaddr::from(ip).with(Protocol::Tcp(0))
}

fn quic(ip: Ipv4Addr) -> Multiaddr {
    Multiaddr::from(ip).with(Protocol::Udp(0)).with(Protocol::QuicV1)
}
