//! How many files are given at a time, to each peer and to all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use petals_swarm::PeerId;

use crate::lock::lock;

/// Files that one peer is given at a time: as many as a server fetches side by side.
const OF_A_PEER: usize = 4;

/// Places for those who are given something.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    taken: Mutex<HashMap<PeerId, usize>>,
}

/// A place, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    peer: PeerId,
}

impl Places {
    pub(super) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, taken: Mutex::default() })
    }

    /// A place for one more file to a peer, if there is one.
    pub(super) fn take(self: &Arc<Self>, peer: PeerId) -> Option<Place> {
        let mut taken = lock(&self.taken);
        if taken.values().sum::<usize>() >= self.all || taken.get(&peer).is_some_and(|of_peer| *of_peer >= OF_A_PEER) {
            return None;
        }
        *taken.entry(peer).or_default() += 1;
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(of_peer) = taken.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_peer_and_for_all() {
        let (places, [one, two]) = (Places::new(6), [0, 1].map(|_| petals_swarm::Identity::generate().peer_id()));
        let mut held: Vec<Place> = (0..OF_A_PEER).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none(), "one has as many as it may");
        let _two = [places.take(two).unwrap(), places.take(two).unwrap()];
        assert!(places.take(two).is_none(), "all six are taken");
        held.pop();
        assert!(places.take(two).is_some());
        drop(held);
        assert!(!lock(&places.taken).contains_key(&one), "nothing is kept of a peer without places");
    }
}
