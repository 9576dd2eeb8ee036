//! How many files are given at a time, to each peer and to all.

use std::sync::{Arc, Mutex};

use petals_swarm::{Party, Shares};

use crate::lock::lock;

/// Files that one peer is given at a time: as many as a server fetches side by side.
const OF_A_PEER: u64 = 4;

/// Places for those who are given something.
#[derive(Debug)]
pub(super) struct Places(Mutex<Shares>);

/// A place, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    party: Party,
}

impl Places {
    pub(super) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Shares::new(all as u64))))
    }

    /// A place for one more file to a party, if there is one.
    pub(super) fn take(self: &Arc<Self>, party: Party) -> Option<Place> {
        let mut shares = lock(&self.0);
        if shares.held_by(party) >= OF_A_PEER || !shares.may_take(party, 1) {
            return None;
        }
        shares.take(party, 1);
        Some(Place { places: self.clone(), party })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.0).give(self.party, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_swarm::Origin;

    #[test]
    fn places_are_bounded_for_each_peer_and_for_all() {
        let at = |number: u8| {
            let origin = Origin::Ip4([10, 0, 0, number].into());
            Party { peer: petals_swarm::Identity::generate().peer_id(), origin }
        };
        let (places, one, two) = (Places::new(6), at(1), at(2));
        let mut held: Vec<Place> = std::iter::from_fn(|| places.take(one)).collect();
        assert_eq!(held.len() as u64, OF_A_PEER, "one has as many as it may");
        let beside = Party { peer: two.peer, ..one };
        assert!(places.take(beside).is_some(), "another id finds one at the same address");
        let _two = [places.take(two).unwrap(), places.take(two).unwrap()];
        assert!(places.take(at(3)).is_none(), "all six are taken");
        held.pop();
        assert!(places.take(at(3)).is_some());
        drop(held);
        assert_eq!(lock(&places.0).held_by(one), 0, "nothing is kept of a peer without places");
    }
}
