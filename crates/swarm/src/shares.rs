//! Who may take how much of what a node has: memory, streams, sessions, hand-overs.
//!
//! Ids are free and addresses are not, so everything is divided twice: among the addresses that hold something, and what an address gets
//! among its peers. Whoever makes a thousand ids on one address divides that address's part a thousand times. A share follows from who is
//! there: an address that is alone may have most of it, and leaves enough for whoever comes next.
//!
//! Two kinds of things are divided. What cannot be taken back (memory of a request under way, a stream) is given only as far as something stays free:
//! [`Shares::may_take`]. What can be taken back (sessions, stashes, places in a queue) may be used up, and who holds more than its
//! [`Shares::portion`] gives way to who holds less.
//!
//! Pure, and O(1) for each question: what is done about an answer, callers know.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::PeerId;
use libp2p::multiaddr::{Multiaddr, Protocol};

use crate::addresses::is_circuit;

/// An address may hold so many times what is left free once it has it, and a peer so many times what is left to its address. A lone peer has
/// 9/16 that way, a lone address 3/4; of two addresses each 3/7.
const TIMES_FREE: u64 = 3;

/// What is taken for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An address of IPv4, behind which a whole house or school may be.
    Ip4(Ipv4Addr),
    /// A net of IPv6 by its first 64 bits: who has one address of it has them all.
    Ip6(u64),
    /// Whatever comes through a relay. What is behind it cannot be seen, and whoever finds a relay could make up any number of peers there; the relay
    /// itself is one that this node chose. So all who come through one relay count as one address.
    Relay(PeerId),
    /// Everything that says nothing of where it is.
    Unknown,
}

impl Origin {
    /// Where the other side of a connection is: `remote` is its address as this node sees it, `local` the end of the connection here, which names
    /// the relay of a circuit that others opened.
    pub(crate) fn of(local: &Multiaddr, remote: &Multiaddr) -> Self {
        if let Some(circuit) = [remote, local].into_iter().find(|address| is_circuit(address)) {
            let before = circuit.iter().take_while(|part| !matches!(part, Protocol::P2pCircuit));
            let relay = before.filter_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None }).last();
            return relay.map_or(Self::Unknown, Self::Relay);
        }
        Self::of_address(remote)
    }

    /// What an address that leads somewhere directly counts as.
    pub(crate) fn of_address(address: &Multiaddr) -> Self {
        match address.iter().next() {
            Some(Protocol::Ip4(ip)) => Self::of_ip(ip.into()),
            Some(Protocol::Ip6(ip)) => Self::of_ip(ip.into()),
            _ => Self::Unknown,
        }
    }

    /// What an address counts as.
    pub fn of_ip(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::Ip4(ip),
            IpAddr::V6(ip) => Self::Ip6((u128::from(ip) >> 64) as u64),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip4(ip) => ip.fmt(f),
            Self::Ip6(net) => write!(f, "{}/64", Ipv6Addr::from(u128::from(*net) << 64)),
            Self::Relay(relay) => write!(f, "relay {relay}"),
            Self::Unknown => f.write_str("an unknown address"),
        }
    }
}

/// Who something is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Party {
    /// The peer.
    pub peer: PeerId,
    /// Where it is.
    pub origin: Origin,
}

impl Party {
    /// A peer of which it is not known where it is.
    pub fn unplaced(peer: PeerId) -> Self {
        Self { peer, origin: Origin::Unknown }
    }
}

/// What there is of one thing, and who holds how much of it.
#[derive(Debug)]
pub struct Shares {
    capacity: u64,
    held: u64,
    origins: HashMap<Origin, OfOrigin>,
}

#[derive(Debug, Default)]
struct OfOrigin {
    held: u64,
    peers: HashMap<PeerId, u64>,
}

impl Shares {
    /// So much, of which nobody holds anything.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, held: 0, origins: HashMap::new() }
    }

    /// What there is.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// What all hold together.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// What nobody holds.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.held)
    }

    /// What a party holds.
    pub fn held_by(&self, party: Party) -> u64 {
        self.origins.get(&party.origin).and_then(|of| of.peers.get(&party.peer)).copied().unwrap_or(0)
    }

    /// What an address holds.
    pub fn held_at(&self, origin: Origin) -> u64 {
        self.origins.get(&origin).map_or(0, |of| of.held)
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Addresses and peers of the party's address that hold something, the party counted in any case.
    fn company(&self, party: Party) -> (u64, u64) {
        let of = self.origins.get(&party.origin);
        let peers = of.map_or(1, |of| of.peers.len() + usize::from(!of.peers.contains_key(&party.peer)));
        ((self.origins.len() + usize::from(of.is_none())) as u64, peers as u64)
    }

    /// The party's part of everything: the same for every address that is there, and of that the same for each of its peers.
    pub fn portion(&self, party: Party) -> u64 {
        let (origins, peers) = self.company(party);
        self.capacity / origins / peers
    }

    /// Whether the party has no more than a modest part with `amount` more: its part if there were one address more, and one peer more at its own.
    /// Parts of this size never use everything up.
    pub fn is_modest(&self, party: Party, amount: u64) -> bool {
        let (origins, peers) = self.company(party);
        let of_origin = self.capacity / (origins + 1);
        let within = |held: u64, most: u64| held.saturating_add(amount) <= most;
        within(self.held_at(party.origin), of_origin) && within(self.held_by(party), of_origin / (peers + 1))
    }

    /// Whether the party may take `amount` more of what cannot be taken back: as much as is its modest part in any case, and more as long as that leaves
    /// something for who comes next.
    pub fn may_take(&self, party: Party, amount: u64) -> bool {
        amount <= self.free() && (self.is_modest(party, amount) || amount <= self.spare(party))
    }

    /// What the party may have beyond its modest part.
    fn spare(&self, party: Party) -> u64 {
        // `a` more, such that `held + a <= TIMES_FREE * (left - a)`.
        let most = |held: u64, left: u64| TIMES_FREE.saturating_mul(left).saturating_sub(held).div_ceil(TIMES_FREE + 1);
        let of_origin = most(self.held_at(party.origin), self.free());
        most(self.held_by(party), of_origin)
    }

    /// The most that a party can ever hold, when nobody else is there.
    pub fn most(&self) -> u64 {
        let part = |all: u64| all - all.div_ceil(TIMES_FREE + 1);
        part(part(self.capacity)).max(self.capacity / 4)
    }

    /// Counts `amount` for the party. Whether it may have it is asked before.
    pub fn take(&mut self, party: Party, amount: u64) {
        if amount == 0 {
            return;
        }
        self.held += amount;
        let of = self.origins.entry(party.origin).or_default();
        of.held += amount;
        *of.peers.entry(party.peer).or_default() += amount;
    }

    /// Gives back what the party holds. Who holds nothing is forgotten.
    pub fn give(&mut self, party: Party, amount: u64) {
        let Some(of) = self.origins.get_mut(&party.origin) else { return };
        let Some(held) = of.peers.get_mut(&party.peer) else { return };
        let amount = amount.min(*held);
        *held -= amount;
        of.held -= amount;
        self.held -= amount;
        if *held == 0 {
            of.peers.remove(&party.peer);
        }
        if of.peers.is_empty() {
            self.origins.remove(&party.origin);
        }
    }

    /// Whether the party holds no more than its [`Self::portion`] with `amount` more. Whatever its neighbours hold: those with more give way.
    pub fn is_portion(&self, party: Party, amount: u64) -> bool {
        self.held_by(party).saturating_add(amount) <= self.portion(party)
    }

    /// How far ahead of its part a party is once `newcomer` is there too, to say who gives way first: who is at the address that holds most, and there
    /// whoever holds most. `None` if its address and it itself hold no more than their parts.
    pub fn ahead(&self, party: Party, newcomer: Party) -> Option<(u64, u64)> {
        let (held, own) = (self.held_at(party.origin), self.held_by(party));
        let (origins, _) = self.company(newcomer);
        let (_, mut peers) = self.company(party);
        if newcomer.origin == party.origin && newcomer.peer != party.peer && self.held_by(newcomer) == 0 {
            peers += 1;
        }
        let of_origin = self.capacity / origins;
        (held > of_origin || own > of_origin / peers).then_some((held.saturating_sub(of_origin), own))
    }
}

#[cfg(test)]
mod tests;
