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
//! Pure, and O(1) for each question: what is done about an answer, callers know. Who asks for every request has a [`Seat`], so that a party is looked up when
//! it comes and when it goes.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::PeerId;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::multihash::Multihash;

use crate::addresses::is_circuit;

mod table;

use table::Table;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Hash for Party {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Ids are hashes and keys, of which nobody finds many with the same 16 bytes; hashing all that an id has room for takes longer than counting.
        let id: &Multihash<64> = self.peer.as_ref();
        let tail = id.digest().len().saturating_sub(16);
        state.write(id.digest().get(tail..).unwrap_or_default());
        self.origin.hash(state);
    }
}

/// A party's place among those who hold something, until [`Shares::leave`]: with it nothing has to be looked up. It counts for nothing itself.
#[derive(Debug, Clone, Copy)]
pub struct Seat(usize);

/// Somebody who holds something or may: by name, or by the place it has.
#[derive(Debug, Clone, Copy)]
pub enum Holder {
    /// By name.
    Party(Party),
    /// By its place.
    Seat(Seat),
}

impl From<Party> for Holder {
    fn from(party: Party) -> Self {
        Self::Party(party)
    }
}

impl From<Seat> for Holder {
    fn from(seat: Seat) -> Self {
        Self::Seat(seat)
    }
}

/// What there is of one thing, and who holds how much of it.
#[derive(Debug)]
pub struct Shares {
    capacity: u64,
    held: u64,
    /// Addresses that hold something.
    holding: u64,
    origins: Table<Origin, OfOrigin>,
    members: Table<Party, Member>,
}

#[derive(Debug, Default)]
struct OfOrigin {
    held: u64,
    /// Peers of it that hold something.
    holding: u64,
    /// Peers of it that are in the table.
    members: usize,
}

#[derive(Debug)]
struct Member {
    /// Where its address is in the table.
    origin: usize,
    held: u64,
    seats: usize,
}

/// What matters of a party for what it may have.
#[derive(Debug, Clone, Copy)]
struct Standing {
    /// What its address and it itself hold.
    at_origin: u64,
    own: u64,
    /// Addresses, and peers of the party's address, that hold something, the party counted in any case.
    origins: u64,
    peers: u64,
}

impl Shares {
    /// So much, of which nobody holds anything.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, held: 0, holding: 0, origins: Table::default(), members: Table::default() }
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
    pub fn held_by(&self, holder: impl Into<Holder>) -> u64 {
        self.member(holder.into()).map_or(0, |member| member.held)
    }

    /// What an address holds.
    pub fn held_at(&self, origin: Origin) -> u64 {
        self.of_origin(origin).map_or(0, |of| of.held)
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.holding == 0
    }

    /// A place for a party that comes and goes often, until [`Self::leave`].
    pub fn seat(&mut self, party: Party) -> Seat {
        let at = self.enter(party);
        if let Some(member) = self.members.get_mut(at) {
            member.seats += 1;
        }
        Seat(at)
    }

    /// Gives up a place, which must not be used from then on. What its party holds is held as before.
    pub fn leave(&mut self, seat: Seat) {
        if let Some(member) = self.members.get_mut(seat.0) {
            member.seats = member.seats.saturating_sub(1);
        }
        self.forget(seat.0);
    }

    fn of_origin(&self, origin: Origin) -> Option<&OfOrigin> {
        self.origins.get(self.origins.find(&origin)?)
    }

    fn find(&self, holder: Holder) -> Option<usize> {
        match holder {
            Holder::Party(party) => self.members.find(&party),
            Holder::Seat(seat) => Some(seat.0),
        }
    }

    fn member(&self, holder: Holder) -> Option<&Member> {
        self.members.get(self.find(holder)?)
    }

    fn standing(&self, holder: Holder) -> Standing {
        let member = self.member(holder);
        let of = match (member, holder) {
            (Some(member), _) => self.origins.get(member.origin),
            (None, Holder::Party(party)) => self.of_origin(party.origin),
            (None, Holder::Seat(_)) => None,
        };
        let (own, at_origin, peers) =
            (member.map_or(0, |member| member.held), of.map_or(0, |of| of.held), of.map_or(0, |of| of.holding));
        let (origins, peers) = (self.holding + u64::from(at_origin == 0), peers + u64::from(own == 0));
        Standing { at_origin, own, origins, peers }
    }

    /// The party's part of everything: the same for every address that is there, and of that the same for each of its peers.
    pub fn portion(&self, holder: impl Into<Holder>) -> u64 {
        let Standing { origins, peers, .. } = self.standing(holder.into());
        self.capacity / origins / peers
    }

    /// Whether the party has no more than a modest part with `amount` more: its part if there were one address more, and one peer more at its own.
    /// Parts of this size never use everything up.
    pub fn is_modest(&self, holder: impl Into<Holder>, amount: u64) -> bool {
        self.keeps_modest(self.standing(holder.into()), amount)
    }

    fn keeps_modest(&self, Standing { at_origin, own, origins, peers }: Standing, amount: u64) -> bool {
        let of_origin = self.capacity / (origins + 1);
        let within = |held: u64, most: u64| held.saturating_add(amount) <= most;
        within(at_origin, of_origin) && within(own, of_origin / (peers + 1))
    }

    /// Whether the party may take `amount` more of what cannot be taken back: as much as is its modest part in any case, and more as long as that leaves
    /// something for who comes next.
    pub fn may_take(&self, holder: impl Into<Holder>, amount: u64) -> bool {
        let standing = self.standing(holder.into());
        amount <= self.free() && (self.keeps_modest(standing, amount) || amount <= self.spare(standing))
    }

    /// What the party may have beyond its modest part.
    fn spare(&self, Standing { at_origin, own, .. }: Standing) -> u64 {
        // `a` more, such that `held + a <= TIMES_FREE * (left - a)`.
        let most = |held: u64, left: u64| TIMES_FREE.saturating_mul(left).saturating_sub(held).div_ceil(TIMES_FREE + 1);
        most(own, most(at_origin, self.free()))
    }

    /// The most that a party can ever hold, when nobody else is there.
    pub fn most(&self) -> u64 {
        let part = |all: u64| all - all.div_ceil(TIMES_FREE + 1);
        part(part(self.capacity)).max(self.capacity / 4)
    }

    /// Counts `amount` for the party. Whether it may have it is asked before.
    pub fn take(&mut self, holder: impl Into<Holder>, amount: u64) {
        if amount == 0 {
            return;
        }
        let at = match holder.into() {
            Holder::Party(party) => self.enter(party),
            Holder::Seat(seat) => seat.0,
        };
        let Some(member) = self.members.get_mut(at) else { return };
        let Some(of) = self.origins.get_mut(member.origin) else { return };
        self.holding += u64::from(of.held == 0);
        of.holding += u64::from(member.held == 0);
        member.held += amount;
        of.held += amount;
        self.held += amount;
    }

    /// Gives back what the party holds. Who holds nothing and has no place is forgotten.
    pub fn give(&mut self, holder: impl Into<Holder>, amount: u64) {
        let Some(at) = self.find(holder.into()) else { return };
        let Some(member) = self.members.get_mut(at) else { return };
        let Some(of) = self.origins.get_mut(member.origin) else { return };
        let amount = amount.min(member.held);
        if amount == 0 {
            return;
        }
        member.held -= amount;
        of.held -= amount;
        self.held -= amount;
        of.holding -= u64::from(member.held == 0);
        self.holding -= u64::from(of.held == 0);
        self.forget(at);
    }

    /// The party's row of the table, made if there is none.
    fn enter(&mut self, party: Party) -> usize {
        if let Some(at) = self.members.find(&party) {
            return at;
        }
        let found = self.origins.find(&party.origin);
        let origin = found.unwrap_or_else(|| self.origins.insert(party.origin, OfOrigin::default()));
        if let Some(of) = self.origins.get_mut(origin) {
            of.members += 1;
        }
        self.members.insert(party, Member { origin, held: 0, seats: 0 })
    }

    /// Takes a row away that says nothing any more.
    fn forget(&mut self, at: usize) {
        let Some(&Member { origin, held: 0, seats: 0 }) = self.members.get(at) else { return };
        self.members.remove(at);
        let Some(of) = self.origins.get_mut(origin) else { return };
        of.members -= 1;
        if of.members == 0 {
            self.origins.remove(origin);
        }
    }

    /// Whether the party holds no more than its [`Self::portion`] with `amount` more. Whatever its neighbours hold: those with more give way.
    pub fn is_portion(&self, holder: impl Into<Holder>, amount: u64) -> bool {
        let Standing { own, origins, peers, .. } = self.standing(holder.into());
        own.saturating_add(amount) <= self.capacity / origins / peers
    }

    /// How far ahead of its part a party is once `newcomer` is there too, to say who gives way first: who is at the address that holds most, and there
    /// whoever holds most. `None` if its address and it itself hold no more than their parts.
    pub fn ahead(&self, party: Party, newcomer: Party) -> Option<(u64, u64)> {
        let Standing { at_origin: held, own, mut peers, .. } = self.standing(party.into());
        let Standing { own: of_newcomer, origins, .. } = self.standing(newcomer.into());
        if newcomer.origin == party.origin && newcomer.peer != party.peer && of_newcomer == 0 {
            peers += 1;
        }
        let of_origin = self.capacity / origins;
        (held > of_origin || own > of_origin / peers).then_some((held.saturating_sub(of_origin), own))
    }
}

#[cfg(test)]
mod tests;
