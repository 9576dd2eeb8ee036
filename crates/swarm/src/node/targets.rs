//! Which addresses this node dials.
//!
//! Addresses come from strangers: a record is signed by whoever it is about, and names whatever they like; what members tell of other members is not
//! even signed. So they may name services of this machine, devices of this network, or somebody whom all nodes are to knock at. What is dialled
//! is judged at one place, behind everything that dials and behind the resolution of names: it must be what can be true from here, and nobody is tried
//! often who never turns out to be a node.
//!
//! What the user said is taken as it is.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::{PeerId, multiaddr};
use tokio::time::Instant;

use crate::addresses::is_loopback;
use crate::config::SwarmConfig;
use crate::shares::Origin;

/// Attempts at a host of which none has led to a node: so many at once, and one in so many seconds afterwards. 16: a host of several nodes with
/// TCP and QUIC each, met for the first time.
const ATTEMPTS: f64 = 16.0;
const SECONDS_EACH: f64 = 10.0;
/// What a host gets for each attempt that led to a node, and how much of it is kept: of a host with many nodes some are always gone.
const FOR_A_NODE: f64 = 8.0;
const MOST_ATTEMPTS: f64 = 256.0;
/// Hosts that are remembered. Those that were not tried lately are forgotten first.
const MOST_HOSTS: usize = 8192;

/// Why an address is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotDialled {
    #[error("it can be no other node's address")]
    Nowhere,
    #[error("it is an address of whoever dials it, and this node knows of no others on its machine")]
    ThisMachine,
    #[error("it is an address of a local network that this machine is not in")]
    OtherNetwork,
    #[error("nothing at this host has turned out to be a node, and it was tried often")]
    TooOften,
}

/// A transport and its port at an address.
type Socket = (SocketAddr, bool);

/// What this node was told by its user, where it is, and how often it tried whom.
#[derive(Debug)]
pub(super) struct Targets {
    told: HashSet<Socket>,
    /// Peers that were told by a name, which may mean any address.
    named: HashSet<PeerId>,
    /// Whether other nodes of the swarm are on this machine.
    on_this_machine: bool,
    listening: HashSet<Socket>,
    hosts: HashMap<Origin, Allowance>,
}

#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

/// Shared by the transport, which asks, and the event loop, which tells what came of it.
#[derive(Debug, Clone)]
pub(super) struct SharedTargets(Arc<Mutex<Targets>>);

impl SharedTargets {
    pub(super) fn new(config: &SwarmConfig) -> Self {
        Self(Arc::new(Mutex::new(Targets::new(config))))
    }

    /// Whether an address is dialled now; counts as an attempt if so.
    pub(super) fn judge(&self, address: &Multiaddr) -> Result<(), NotDialled> {
        self.with(|targets| targets.judge(address, Instant::now(), source_towards))
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Targets) -> T) -> T {
        // Changed in single steps, so a panic elsewhere leaves it whole.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Targets {
    fn new(config: &SwarmConfig) -> Self {
        let told = || config.peers.iter().chain(&config.relay_via).chain(&config.announce);
        let names_a_host = |address: &&Multiaddr| address.iter().next().is_some_and(|first| is_name(&first));
        let only_here = !config.listen.is_empty() && !config.leaves_machine();
        // Whoever knows of nobody and is found by nobody dials what its user names.
        let alone =
            told().next().is_none() && config.members.is_none() && !config.searches() && config.listen.is_empty();
        Self {
            told: told().filter_map(socket).collect(),
            named: told().filter(names_a_host).filter_map(peer).collect(),
            on_this_machine: only_here || alone || told().any(is_loopback),
            listening: HashSet::new(),
            hosts: HashMap::new(),
        }
    }

    /// What was met at an earlier start was reached then.
    pub(super) fn remember<'a>(&mut self, met: impl IntoIterator<Item = &'a Multiaddr>) {
        for address in met {
            self.on_this_machine |= is_loopback(address);
            self.told.extend(socket(address));
        }
    }

    /// Where this node listens now.
    pub(super) fn listen_at(&mut self, addresses: &[Multiaddr]) {
        self.listening = addresses.iter().filter_map(socket).collect();
    }

    /// `source` gives the address from which this machine would talk to another one.
    fn judge(
        &mut self,
        address: &Multiaddr,
        now: Instant,
        source: impl Fn(IpAddr) -> Option<IpAddr>,
    ) -> Result<(), NotDialled> {
        // A name is judged when it is resolved, a circuit by its relay's address.
        let Some(host) = ip(address) else { return Ok(()) };
        let by_name = peer(address).is_some_and(|peer| self.named.contains(&peer));
        let is_told = |socket| self.told.contains(&socket) || self.listening.contains(&socket);
        if by_name || socket(address).is_some_and(is_told) {
            self.on_this_machine |= host.is_loopback();
            return Ok(());
        }
        if is_nowhere(host) {
            return Err(NotDialled::Nowhere);
        }
        if host.is_loopback() {
            return if self.on_this_machine { Ok(()) } else { Err(NotDialled::ThisMachine) };
        }
        if let Some(net) = local_net(host)
            && source(host).and_then(local_net) != Some(net)
        {
            return Err(NotDialled::OtherNetwork);
        }
        if self.attempt(Origin::of_ip(host), now) { Ok(()) } else { Err(NotDialled::TooOften) }
    }

    fn attempt(&mut self, host: Origin, now: Instant) -> bool {
        if self.hosts.len() >= MOST_HOSTS && !self.hosts.contains_key(&host) {
            self.hosts.retain(|_, allowance| allowance.refilled(now) < ATTEMPTS);
            // Those that are left were all tried lately, and in vain: as many hosts are no host.
            if self.hosts.len() >= MOST_HOSTS {
                return false;
            }
        }
        let allowance = self.hosts.entry(host).or_insert(Allowance { left: ATTEMPTS, at: now });
        *allowance = Allowance { left: allowance.refilled(now), at: now };
        let granted = allowance.left >= 1.0;
        if granted {
            allowance.left -= 1.0;
        }
        granted
    }

    /// An attempt at this address led to a node.
    pub(super) fn is_node(&mut self, address: &Multiaddr) {
        if let Some(allowance) = ip(address).and_then(|host| self.hosts.get_mut(&Origin::of_ip(host))) {
            allowance.left = (allowance.left + FOR_A_NODE).min(MOST_ATTEMPTS);
        }
    }
}

impl Allowance {
    fn refilled(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        // What was given for nodes stays.
        if self.left >= ATTEMPTS { self.left } else { (self.left + since / SECONDS_EACH).min(ATTEMPTS) }
    }
}

fn is_name(part: &multiaddr::Protocol<'_>) -> bool {
    matches!(part, Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_))
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    }
}

fn socket(address: &Multiaddr) -> Option<Socket> {
    let (port, is_udp) = match address.iter().nth(1)? {
        Protocol::Tcp(port) => (port, false),
        Protocol::Udp(port) => (port, true),
        _ => return None,
    };
    Some((SocketAddr::new(ip(address)?, port), is_udp))
}

fn peer(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

/// Whether nothing that is told to others can be there: every address, groups, one link, or what is kept back.
fn is_nowhere(host: IpAddr) -> bool {
    match host {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.octets()[0] >= 224 || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local(),
    }
}

/// Which of the ranges for local networks an address is of. Others than one's own are not told apart by their masks, which routers of larger networks
/// know alone.
fn local_net(host: IpAddr) -> Option<IpAddr> {
    let v4 = |a, b| Some(IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)));
    match host {
        IpAddr::V4(ip) => match ip.octets() {
            [10, ..] => v4(10, 0),
            [172, b, ..] if b & 0xf0 == 16 => v4(172, 16),
            [192, 168, ..] => v4(192, 168),
            // Carriers' networks behind their address translation, and overlays.
            [100, b, ..] if b & 0xc0 == 64 => v4(100, 64),
            _ => None,
        },
        IpAddr::V6(ip) => ip.is_unique_local().then(|| IpAddr::V6([0xfc00, 0, 0, 0, 0, 0, 0, 0].into())),
    }
}

/// The address from which the system would talk to another one, if it knows a way. Nothing is sent for it.
fn source_towards(host: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = if host.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let probe = UdpSocket::bind(any).ok()?;
    probe.connect((host, 9)).ok()?;
    Some(probe.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn config(listen: &[&str], peers: &[&str]) -> SwarmConfig {
        let peers = peers.iter().map(|peer| address(&format!("{peer}/p2p/{}", PeerId::random()))).collect();
        SwarmConfig { listen: listen.iter().map(|text| address(text)).collect(), peers, ..SwarmConfig::server() }
    }

    /// What a machine at `here` says to addresses in a swarm that it knows through a peer.
    fn judged(config: &SwarmConfig, here: &str, all: &[&str]) -> Vec<Option<NotDialled>> {
        let mut targets = Targets::new(config);
        let here: IpAddr = here.parse().unwrap();
        all.iter().map(|text| targets.judge(&address(text), Instant::now(), |_| Some(here)).err()).collect()
    }

    const PUBLIC: [&str; 1] = ["/ip4/198.51.100.7/tcp/1"];
    const EVERYWHERE: [&str; 1] = ["/ip4/0.0.0.0/tcp/0"];

    #[test]
    fn what_cannot_be_true_from_here_is_not_dialled() {
        use NotDialled::{Nowhere, OtherNetwork, ThisMachine};
        let config = config(&EVERYWHERE, &PUBLIC);
        let never = [
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/169.254.169.254/tcp/80",
            "/ip4/224.0.0.251/udp/5353/quic-v1",
            "/ip4/255.255.255.255/tcp/1",
            "/ip6/::/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/ff02::1/tcp/1",
            "/ip6/::ffff:169.254.169.254/tcp/80",
        ];
        assert_eq!(judged(&config, "192.168.1.5", &never), [Some(Nowhere); 8]);
        let here = [
            "/ip4/127.0.0.1/tcp/22",
            "/ip6/::1/tcp/22",
            "/ip6/::ffff:127.0.0.1/tcp/22",
            "/ip4/127.9.9.9/udp/1/quic-v1",
        ];
        assert_eq!(judged(&config, "127.0.0.1", &here), [Some(ThisMachine); 4]);
        let local =
            ["/ip4/192.168.1.1/tcp/80", "/ip4/10.0.0.1/tcp/80", "/ip4/100.64.0.1/tcp/1", "/ip4/203.0.113.5/tcp/1"];
        let elsewhere = Some(OtherNetwork);
        assert_eq!(judged(&config, "198.51.100.9", &local), [elsewhere, elsewhere, elsewhere, None]);
        assert_eq!(judged(&config, "192.168.1.5", &local), [None, elsewhere, elsewhere, None], "it may be a neighbour");
        assert_eq!(judged(&config, "fd00::5", &["/ip6/fd00:1::1/tcp/1"]), [None]);
        assert_eq!(judged(&config, "192.168.1.5", &["/dns4/example.org/tcp/1"]), [None], "when it is resolved");
    }

    #[test]
    fn swarms_on_one_machine_and_in_local_networks_need_no_flag() {
        let loopback = ["/ip4/127.0.0.1/tcp/7"];
        assert_eq!(judged(&config(&["/ip4/127.0.0.1/tcp/0"], &[]), "127.0.0.1", &loopback), [None]);
        assert_eq!(judged(&config(&EVERYWHERE, &["/ip4/127.0.0.1/tcp/1"]), "127.0.0.1", &loopback), [None]);
        let client = SwarmConfig { peers: config(&[], &["/ip4/127.0.0.1/tcp/1"]).peers, ..SwarmConfig::client() };
        assert_eq!(judged(&client, "127.0.0.1", &loopback), [None]);
        assert_eq!(judged(&SwarmConfig::client(), "127.0.0.1", &loopback), [None], "a user named it");
        let searching = SwarmConfig::client_of(Vec::new());
        assert_eq!(judged(&searching, "127.0.0.1", &loopback), [Some(NotDialled::ThisMachine)]);
        let lan = config(&["/ip4/192.168.1.5/tcp/1"], &["/ip4/192.168.1.9/tcp/1"]);
        assert_eq!(judged(&lan, "192.168.1.5", &["/ip4/192.168.1.77/tcp/1"]), [None]);
        let mut remembering = Targets::new(&SwarmConfig::client_of(Vec::new()));
        remembering.remember([&address("/ip4/127.0.0.1/tcp/1")]);
        assert_eq!(remembering.judge(&address(loopback[0]), Instant::now(), |_| None), Ok(()));
    }

    #[test]
    fn what_the_user_said_is_dialled() {
        let link_local = "/ip4/169.254.7.7/tcp/1";
        let told = config(&EVERYWHERE, &[link_local, "/dns4/home.example/tcp/31330"]);
        let named = told.peers[1].iter().last().unwrap();
        let all = [link_local, "/ip4/169.254.7.7/tcp/2"];
        assert_eq!(judged(&told, "198.51.100.9", &all), [None, Some(NotDialled::Nowhere)]);
        let resolved = address("/ip4/192.168.1.1/tcp/31330").with(named);
        let mut targets = Targets::new(&told);
        assert_eq!(targets.judge(&resolved, Instant::now(), |_| None), Ok(()));
        let other = address("/ip4/192.168.1.1/tcp/31330").with(Protocol::P2p(PeerId::random()));
        assert_eq!(targets.judge(&other, Instant::now(), |_| None), Err(NotDialled::OtherNetwork));
    }

    #[test]
    fn a_thousand_records_do_not_lead_to_a_host_that_is_no_node() {
        let (mut targets, now) = (Targets::new(&config(&EVERYWHERE, &PUBLIC)), Instant::now());
        let at = |host: &str, n: u32| address(&format!("/ip4/{host}/tcp/{}/p2p/{}", 1 + n, PeerId::random()));
        let dialled = |targets: &mut Targets, host: &str, now| {
            (0..1000).filter(|n| targets.judge(&at(host, *n), now, |_| None).is_ok()).count()
        };
        assert_eq!(dialled(&mut targets, "203.0.113.5", now), ATTEMPTS as usize);
        assert_eq!(dialled(&mut targets, "203.0.113.6", now), ATTEMPTS as usize, "others are not affected");
        assert_eq!(dialled(&mut targets, "203.0.113.5", now + Duration::from_secs(60)), 6);
        // Of IPv6 a whole net is one host.
        let of_net = |n: u32| address(&format!("/ip6/2001:db8::{:x}/tcp/1", n + 1));
        assert_eq!((0..100).filter(|n| targets.judge(&of_net(*n), now, |_| None).is_ok()).count(), ATTEMPTS as usize);
        // A host of many nodes is met at the pace at which it turns out to be one.
        for n in 0..500 {
            assert_eq!(targets.judge(&at("203.0.113.7", n), now, |_| None), Ok(()), "the {n}th node");
            targets.is_node(&at("203.0.113.7", n));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut targets, now) = (Targets::new(&config(&EVERYWHERE, &PUBLIC)), Instant::now());
        let host = |n: usize| address(&format!("/ip4/203.{}.{}.1/tcp/1", n / 250, n % 250));
        for n in 0..2 * MOST_HOSTS {
            let _ = targets.judge(&host(n), now, |_| None);
        }
        assert!(targets.hosts.len() <= MOST_HOSTS);
        let later = now + Duration::from_secs(60);
        assert_eq!(targets.judge(&host(3 * MOST_HOSTS), later, |_| None), Ok(()));
    }
}
