//! What a node is told when it starts.

use std::time::Duration;

use libp2p::Multiaddr;

use crate::addresses::{AddressError, split_peer};

/// Part a node plays in the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwarmMode {
    /// Keeps a part of the directory and accepts streams: servers and bootstrap nodes.
    Server,
    /// Only asks: keeps nothing for others, accepts no streams and need not be reachable.
    Client,
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
    /// What to tell others instead of the listen addresses, for nodes behind a forwarded port.
    pub announce: Vec<Multiaddr>,
    /// Known members of the swarm, each ending in `/p2p/` and its id. Tried again and again until one answers.
    pub peers: Vec<Multiaddr>,
    /// How often a server repeats its announcement; others forget it after twice that. 60 s: a dead server is forgotten
    /// after two minutes, at a cost of a few hundred small messages per minute.
    pub announce_period: Duration,
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
}

impl SwarmConfig {
    /// Defaults of a server or bootstrap node: listens for TCP on a port that the system picks.
    pub fn server() -> Self {
        let any = Multiaddr::empty()
            .with(libp2p::multiaddr::Protocol::Ip4(std::net::Ipv4Addr::UNSPECIFIED))
            .with(libp2p::multiaddr::Protocol::Tcp(0));
        Self { mode: SwarmMode::Server, listen: vec![any], ..Self::client() }
    }

    /// Defaults of a client: listens nowhere.
    pub fn client() -> Self {
        Self {
            mode: SwarmMode::Client,
            listen: Vec::new(),
            announce: Vec::new(),
            peers: Vec::new(),
            announce_period: Duration::from_secs(60),
            dial_timeout: Duration::from_secs(5),
            lookup_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            max_streams_per_peer: 16,
            max_streams: 1024,
        }
    }

    /// How long others keep an announcement of this node.
    pub(crate) fn record_ttl(&self) -> Duration {
        self.announce_period.saturating_mul(2)
    }

    pub(crate) fn validate(&self) -> Result<(), AddressError> {
        self.peers.iter().try_for_each(|address| split_peer(address).map(drop))
    }
}
