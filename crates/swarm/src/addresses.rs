//! Which addresses are accepted, told to others and believed.

use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::{PeerId, multiaddr};

/// Addresses of one peer that are kept. A multi-homed host with TCP and QUIC has about ten.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// Of these, how many lead through relays.
const MAX_CIRCUITS: usize = 4;
/// Longest address accepted from others, in bytes of text.
pub(crate) const MAX_ADDRESS_LEN: usize = 256;

/// Why a text is not a usable address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Not a multiaddress.
    #[error("`{text}` is not a multiaddress: write for example /ip4/203.0.113.5/tcp/31337")]
    Syntax {
        /// What was given.
        text: String,
        /// Why it does not parse.
        source: multiaddr::Error,
    },
    /// The address of a peer must say which peer is expected there.
    #[error("`{0}` does not say who is there: the address of a peer ends in /p2p/ and its id")]
    NoPeerId(String),
}

/// Parses one multiaddress, as of a `--listen` or `--announce` flag.
///
/// # Errors
/// [`AddressError::Syntax`], which repeats the text.
pub fn parse_address(text: &str) -> Result<Multiaddr, AddressError> {
    text.parse().map_err(|source| AddressError::Syntax { text: text.to_owned(), source })
}

/// Parses several multiaddresses.
///
/// # Errors
/// As [`parse_address`], for the first that is wrong.
pub fn parse_addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Multiaddr>, AddressError> {
    texts.into_iter().map(parse_address).collect()
}

/// Parses the addresses of peers, as of a `--peers` flag: each must end in `/p2p/` and the peer's id.
///
/// # Errors
/// [`AddressError`] for the first that is wrong.
pub fn parse_peers<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<Multiaddr>, AddressError> {
    let addresses = parse_addresses(texts)?;
    addresses.iter().try_for_each(|address| split_peer(address).map(drop))?;
    Ok(addresses)
}

/// Splits `/…/p2p/ID` into the peer and the address without it.
pub(crate) fn split_peer(address: &Multiaddr) -> Result<(PeerId, Multiaddr), AddressError> {
    let mut address = address.clone();
    match address.pop() {
        Some(Protocol::P2p(peer)) => Ok((peer, address)),
        Some(other) => Err(AddressError::NoPeerId(address.with(other).to_string())),
        None => Err(AddressError::NoPeerId(String::new())),
    }
}

/// The address without a trailing `/p2p/ID`.
pub(crate) fn without_peer(address: &Multiaddr) -> Multiaddr {
    split_peer(address).map_or_else(|_| address.clone(), |(_, rest)| rest)
}

/// Whether the address can be reached from this machine only.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

/// Whether the address names a TCP socket.
pub(crate) fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

/// Whether the address leads through a relay.
pub(crate) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

/// Whether the address is one of the public internet, by number.
pub(crate) fn is_global(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0b1100_0000 == 0b0100_0000;
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        Some(Protocol::Ip6(ip)) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local())
        }
        // A name is given to what strangers are to find.
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        _ => false,
    }
}

/// Addresses that mean something on one link or none at all.
fn is_useless(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified() || ip.is_link_local(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified() || ip.is_unicast_link_local(),
        _ => false,
    }
}

/// What a node tells others about where it is. What the operator announces is taken as it is; otherwise what it listens
/// on, without loopback addresses unless it has no others: on one machine a swarm on 127.0.0.1 works, and so does one
/// on the address of the local network, while a loopback address told to another machine leads to a stranger. Circuits
/// through relays are told in any case: they are asked for only where they are needed.
pub(crate) fn external_addresses(announced: &[Multiaddr], listening: &[Multiaddr]) -> Vec<Multiaddr> {
    let usable =
        |circuit| listening.iter().filter(move |address| is_circuit(address) == circuit && !is_useless(address));
    let mut addresses: Vec<Multiaddr> = if announced.is_empty() {
        let global: Vec<_> = usable(false).filter(|address| !is_loopback(address)).map(without_peer).collect();
        if global.is_empty() { usable(false).map(without_peer).collect() } else { global }
    } else {
        announced.iter().map(without_peer).collect()
    };
    addresses.sort_by_key(|address| (!is_tcp(address), address.to_string()));
    addresses.dedup();
    let mut circuits: Vec<Multiaddr> = usable(true).map(without_peer).collect();
    circuits.sort_by_key(ToString::to_string);
    circuits.dedup();
    circuits.truncate(MAX_CIRCUITS);
    addresses.truncate(MAX_ADDRESSES - circuits.len());
    addresses.extend(circuits);
    addresses
}

/// Of the addresses a peer claims, those worth keeping: a loopback address only counts if the peer is on this machine.
pub(crate) fn believable(claimed: impl IntoIterator<Item = Multiaddr>, peer_is_local: bool) -> Vec<Multiaddr> {
    let wanted = |address: &Multiaddr| {
        address.len() <= MAX_ADDRESS_LEN && !is_useless(address) && (peer_is_local || !is_loopback(address))
    };
    claimed.into_iter().filter(wanted).take(MAX_ADDRESSES).collect()
}

/// The socket behind a plain `/ip…/tcp/PORT`.
pub(crate) fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// The end of a peer id, enough to tell peers apart in a log.
pub(crate) fn short(peer: &PeerId) -> String {
    let text = peer.to_base58();
    text[text.len().saturating_sub(8)..].to_owned()
}

/// Of a node's addresses those that a person should hand to others: the best one of the internet and the best one of the local network, else a
/// relay, else one that only this machine reaches. `primary` is the address from which this machine talks to others.
pub fn worth_handing_on(addresses: &[Multiaddr], primary: Option<IpAddr>) -> Vec<Multiaddr> {
    let is_primary = |address: &&Multiaddr| match (address.iter().next(), primary) {
        (Some(Protocol::Ip4(ip)), Some(primary)) => IpAddr::V4(ip) == primary,
        (Some(Protocol::Ip6(ip)), Some(primary)) => IpAddr::V6(ip) == primary,
        _ => false,
    };
    let is_ip6 = |address: &Multiaddr| matches!(address.iter().next(), Some(Protocol::Ip6(_)));
    let rank = |address: &&Multiaddr| (!is_tcp(address), is_ip6(address), !is_primary(address));
    let direct = || addresses.iter().filter(|address| !is_circuit(address) && !is_useless(address));
    let best = |addresses: &mut dyn Iterator<Item = &Multiaddr>| addresses.min_by_key(rank).cloned();
    let global = best(&mut direct().filter(|address| is_global(address)));
    let local = best(&mut direct().filter(|address| !is_global(address) && !is_loopback(address)));
    let circuit = || best(&mut addresses.iter().filter(|address| is_circuit(address)));
    let relayed = if global.is_none() { circuit() } else { None };
    let found: Vec<Multiaddr> = [global, local, relayed].into_iter().flatten().collect();
    if found.is_empty() { best(&mut direct()).into_iter().collect() } else { found }
}

/// The network that a node with these addresses is counted to: of IPv4 the address, of IPv6 its first 64 bits, which one household has; behind a
/// relay the relay's. None on this machine, where nodes share an address. Addresses are a node's word: it is found at them, or nowhere.
pub fn network_of(addresses: &[Multiaddr]) -> Option<IpAddr> {
    let network = |address: &Multiaddr| match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => Some(IpAddr::V4(ip)),
            None => Some(IpAddr::V6((ip.to_bits() >> 64 << 64).into())),
        },
        _ => None,
    };
    let best = addresses.iter().filter(|address| !is_loopback(address)).min_by_key(|address| !is_global(address))?;
    network(best)
}

/// Whether only programs of the same machine reach this address.
pub fn is_of_this_machine(address: &Multiaddr) -> bool {
    is_loopback(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        parse_addresses(texts.iter().copied()).unwrap()
    }

    #[test]
    fn a_wrong_address_is_named() {
        let error = parse_address("127.0.0.1:80").unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:80"), "{error}");
        let error = parse_peers(["/ip4/127.0.0.1/tcp/80"]).unwrap_err().to_string();
        assert!(error.contains("/ip4/127.0.0.1/tcp/80") && error.contains("/p2p/"), "{error}");
        assert!(parse_peers([""]).is_err());
        let good = format!("/ip4/127.0.0.1/tcp/80/p2p/{}", PeerId::random());
        assert_eq!(parse_peers([good.as_str()]).unwrap().len(), 1);
    }

    #[test]
    fn loopback_is_told_only_if_there_is_nothing_else() {
        let lan = addresses(&["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.5/udp/1/quic-v1", "/ip4/192.168.1.5/tcp/1"]);
        let told = external_addresses(&[], &lan);
        assert_eq!(told, addresses(&["/ip4/192.168.1.5/tcp/1", "/ip4/192.168.1.5/udp/1/quic-v1"]));
        assert_eq!(external_addresses(&[], &lan[..1]), lan[..1]);
        assert_eq!(external_addresses(&lan[..1], &lan), lan[..1]);
        assert!(external_addresses(&[], &addresses(&["/ip6/fe80::1/tcp/1"])).is_empty());
    }

    #[test]
    fn circuits_are_told_beside_the_rest_and_behind_it() {
        let relay = PeerId::random();
        let circuit = format!("/ip4/203.0.113.5/tcp/1/p2p/{relay}/p2p-circuit");
        let listening = addresses(&["/ip4/192.168.1.5/tcp/1", &format!("{circuit}/p2p/{}", PeerId::random())]);
        let told = external_addresses(&[], &listening);
        assert_eq!(told, addresses(&["/ip4/192.168.1.5/tcp/1", &circuit]));
        assert_eq!(external_addresses(&listening[..1], &listening), told);
        assert_eq!(believable(told.clone(), false), told);
        let many: Vec<Multiaddr> = (1..40).map(|port| format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()).collect();
        let told = external_addresses(&[], &[&many[..], &listening[1..]].concat());
        assert!(told.len() == MAX_ADDRESSES && told.last().is_some_and(is_circuit));
    }

    #[test]
    fn what_others_reach_is_handed_on() {
        let handed = |texts: &[&str]| worth_handing_on(&addresses(texts), Some("192.168.1.5".parse().unwrap()));
        let all = [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/172.17.0.1/tcp/1",
            "/ip6/2001:db8::1/tcp/1",
            "/ip4/192.168.1.5/udp/1/quic-v1",
            "/ip4/192.168.1.5/tcp/1",
            "/ip4/203.0.113.5/tcp/1",
        ];
        assert_eq!(handed(&all), addresses(&["/ip4/203.0.113.5/tcp/1", "/ip4/192.168.1.5/tcp/1"]));
        assert_eq!(handed(&all[..5]), addresses(&["/ip6/2001:db8::1/tcp/1", "/ip4/192.168.1.5/tcp/1"]));
        assert_eq!(handed(&all[..2]), addresses(&all[1..2]));
        assert_eq!(handed(&all[..1]), addresses(&all[..1]), "there is nothing else");
        let circuit = format!("/ip4/203.0.113.9/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
        assert_eq!(handed(&[all[4], &circuit]), addresses(&[all[4], &circuit]));
        assert_eq!(handed(&[all[5], &circuit]), addresses(&[all[5]]));
        assert!(handed(&["/ip6/fe80::1/tcp/1"]).is_empty());
    }

    #[test]
    fn nodes_are_counted_by_networks() {
        let of = |texts: &[&str]| network_of(&addresses(texts)).map(|ip| ip.to_string());
        assert_eq!(of(&["/ip4/192.168.1.5/tcp/1", "/ip4/203.0.113.5/tcp/1"]).as_deref(), Some("203.0.113.5"));
        assert_eq!(of(&["/ip6/2001:db8::1:2:3:4/tcp/1"]), of(&["/ip6/2001:db8:0:0:9::/udp/1/quic-v1"]));
        assert_ne!(of(&["/ip6/2001:db8:0:1::1/tcp/1"]), of(&["/ip6/2001:db8::1/tcp/1"]));
        assert_eq!(of(&["/ip6/::ffff:203.0.113.5/tcp/1"]).as_deref(), Some("203.0.113.5"));
        assert_eq!(of(&["/ip4/127.0.0.1/tcp/1"]), None);
    }

    #[test]
    fn a_remote_peer_is_not_believed_to_be_on_loopback() {
        let claimed = addresses(&["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"]);
        assert_eq!(believable(claimed.clone(), false), claimed[1..]);
        assert_eq!(believable(claimed.clone(), true), claimed);
    }
}
