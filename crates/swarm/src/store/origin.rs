//! Who a part of the hash table is accounted to: networks, because ids are free.

use std::collections::HashMap;
use std::net::IpAddr;

use libp2p::PeerId;

/// A network, as [`crate::addresses::network_of`] counts them, or a peer on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// Of whoever has this address.
    Network(IpAddr),
    /// Of this peer alone.
    Peer(PeerId),
}

/// The place of what gives way to a newcomer, if anything does: of the origin that has most, and more than the newcomer would have; of that first
/// what nobody vouches for, and of such the youngest, which is the last. `all`: where each is from, and whether it is vouched for.
pub(super) fn yielding(all: impl Iterator<Item = (Origin, bool)> + Clone, newcomer: Origin) -> Option<usize> {
    let mut counts: HashMap<Origin, usize> = HashMap::new();
    all.clone().for_each(|(origin, _)| *counts.entry(origin).or_default() += 1);
    let own = counts.get(&newcomer).copied().unwrap_or_default();
    let (most, count) = counts.into_iter().max_by_key(|(origin, count)| (*count, *origin))?;
    if count <= own + 1 {
        return None;
    }
    let of_most = all.enumerate().filter(|(_, (origin, _))| *origin == most);
    of_most.max_by_key(|(place, (_, vouched))| (!vouched, *place)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_most_gives_way_to_whoever_has_less() {
        let of = |network: u8| Origin::Network(IpAddr::from([10, 0, 0, network]));
        let all = [(of(1), true), (of(2), true), (of(2), false), (of(2), true), (of(1), true)];
        let place = |newcomer| yielding(all.iter().copied(), newcomer);
        assert_eq!(place(of(3)), Some(2), "what nobody vouches for");
        assert_eq!(place(of(2)), None, "nobody makes room for himself");
        assert_eq!(place(of(1)), None, "it would have as many");
        let vouched = [(of(2), true), (of(1), true), (of(2), true)];
        assert_eq!(yielding(vouched.into_iter(), of(3)), Some(2), "the youngest");
        assert_eq!(yielding(std::iter::empty(), of(3)), None);
        assert_eq!(yielding([(of(1), false), (of(2), false)].into_iter(), of(3)), None, "all have one");
    }
}
