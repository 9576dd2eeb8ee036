//! A bounded queue that shares work among its addresses and peers, and finishes what each of them began.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

use petals_swarm::{Origin, Party};

/// Who has a lane, and where that is.
pub(crate) trait Owner: Copy + Eq + Hash + Debug {
    /// Where.
    type Place: Copy + Eq + Hash + Debug;

    /// Where it is.
    fn place(&self) -> Self::Place;
}

impl Owner for Party {
    type Place = Origin;

    fn place(&self) -> Origin {
        self.origin
    }
}

/// Each peer has a lane, and lanes of one address lie together. The address for which least was done comes next, and there the lane for which
/// least was done: addresses get equal shares of the work, and so do the peers of each, however large their items are. What a lane was given before it
/// was empty does not count for long: who comes (back)
/// starts level with those that wait. Within a lane urgent items go before others, each in the order of their arrival: a
/// backward before the forwards behind it, so that few stashes are held at a time.
///
/// A full queue is shared as well: who has less waiting than another displaces that other's newest item.
#[derive(Debug)]
pub(crate) struct FairQueue<K: Owner, T> {
    places: HashMap<K::Place, Place<K, T>>,
    /// What was done for the place that was served last, before that: nobody who waits has less.
    level: u64,
    /// Numbers turns, so that of equals the one comes first that waited longer.
    turn: u64,
    len: usize,
    capacity: usize,
    lane_capacity: usize,
}

/// The lanes of one address.
#[derive(Debug)]
struct Place<K, T> {
    lanes: HashMap<K, Lane<T>>,
    /// As that of the queue, among these lanes.
    level: u64,
    len: usize,
    done: u64,
    turn: u64,
}

#[derive(Debug)]
struct Lane<T> {
    urgent: VecDeque<(u64, T)>,
    others: VecDeque<(u64, T)>,
    done: u64,
    turn: u64,
}

impl<T> Lane<T> {
    fn len(&self) -> usize {
        self.urgent.len() + self.others.len()
    }

    fn front(&self) -> Option<&T> {
        self.urgent.front().or(self.others.front()).map(|(_, item)| item)
    }

    fn pop(&mut self) -> Option<(u64, T)> {
        self.urgent.pop_front().or_else(|| self.others.pop_front())
    }
}

impl<K: Owner, T> FairQueue<K, T> {
    pub(crate) fn new(capacity: usize, lane_capacity: usize) -> Self {
        Self { places: HashMap::new(), level: 0, turn: 0, len: 0, capacity, lane_capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Everything that waits, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let lanes = self.places.values().flat_map(|place| place.lanes.values());
        lanes.flat_map(|lane| lane.urgent.iter().chain(&lane.others)).map(|(_, item)| item)
    }

    /// Appends an item of `cost` to the lane of `key`, and gives back the item that it displaced, if any. An error is the
    /// item itself, for which there is no room.
    pub(crate) fn push(&mut self, key: K, item: T, cost: u64, urgent: bool) -> Result<Option<T>, T> {
        let place = self.places.get(&key.place());
        let waiting = place.and_then(|place| place.lanes.get(&key)).map_or(0, Lane::len);
        let waiting_there = place.map_or(0, |place| place.len);
        if waiting >= self.lane_capacity {
            return Err(item);
        }
        let mut displaced = None;
        if self.len >= self.capacity {
            let Some(other) = self.displace(key, waiting, waiting_there) else { return Err(item) };
            displaced = Some(other);
        }
        let (level, turn) = (self.level, self.turn);
        let empty = || Place { lanes: HashMap::new(), level: 0, len: 0, done: level, turn };
        let place = self.places.entry(key.place()).or_insert_with(empty);
        if place.len == 0 {
            place.done = place.done.max(level);
            place.turn = turn;
        }
        let level = place.level;
        let empty = || Lane { urgent: VecDeque::new(), others: VecDeque::new(), done: level, turn };
        let lane = place.lanes.entry(key).or_insert_with(empty);
        if lane.len() == 0 {
            lane.done = lane.done.max(level);
            lane.turn = turn;
            self.turn += 1;
        }
        if urgent { &mut lane.urgent } else { &mut lane.others }.push_back((cost.max(1), item));
        place.len += 1;
        self.len += 1;
        Ok(displaced)
    }

    /// Takes out the newest item of the longest lane at the place with most, if that has more than the place of `key` will have, or else of the longest lane at
    /// its own place.
    fn displace(&mut self, key: K, waiting: usize, waiting_there: usize) -> Option<T> {
        let (most_at, most) =
            self.places.iter().max_by_key(|(_, place)| place.len).map(|(at, place)| (*at, place.len))?;
        let elsewhere = most_at != key.place() && most > waiting_there + 1;
        let place = self.places.get_mut(&if elsewhere { most_at } else { key.place() })?;
        let longest = place.lanes.values_mut().max_by_key(|lane| lane.len())?;
        if !elsewhere && longest.len() <= waiting + 1 {
            return None;
        }
        let (_, item) = longest.others.pop_back().or_else(|| longest.urgent.pop_back())?;
        place.len -= 1;
        self.len -= 1;
        Some(item)
    }

    /// Takes all that fits of the items that are next in their lanes, those first for whom least was done; they count as the lanes' shares like others.
    pub(crate) fn pop_those(&mut self, fits: &mut impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        let mut candidates = self.waiting();
        while let Some((number, owner)) =
            candidates.iter().copied().enumerate().min_by_key(|(_, owner)| self.had(*owner))
        {
            if self.front(owner).is_some_and(&mut *fits)
                && let Some(item) = self.take(owner)
            {
                taken.push(item);
            } else {
                candidates.swap_remove(number);
            }
        }
        taken
    }

    /// Takes that item which fits of those that are next in their lanes, of whom least was done for. What fits may depend on whether less was done for its owner than
    /// for `other`: at another address for all together, at the same one for its lane.
    pub(crate) fn pop_beside(&mut self, other: K, fits: &mut impl FnMut(&T, bool) -> bool) -> Option<T> {
        let mut candidates = self.waiting();
        candidates.sort_by_key(|owner| self.had(*owner));
        let chosen = candidates.into_iter().find(|owner| {
            let less = self.had_less(*owner, other);
            self.front(*owner).is_some_and(|item| fits(item, less))
        })?;
        self.take(chosen)
    }

    /// Owners of lanes in which something waits.
    fn waiting(&self) -> Vec<K> {
        let lanes = self.places.values().flat_map(|place| &place.lanes);
        lanes.filter(|(_, lane)| lane.len() > 0).map(|(key, _)| *key).collect()
    }

    /// What was done for the place of `owner` and for its lane, to order them by.
    fn had(&self, owner: K) -> Option<[(u64, u64); 2]> {
        let place = self.places.get(&owner.place())?;
        let lane = place.lanes.get(&owner)?;
        Some([(place.done, place.turn), (lane.done, lane.turn)])
    }

    /// Whether less was done for `one` than for `other`. Whoever is not known has had as much as those that were served last.
    fn had_less(&self, one: K, other: K) -> bool {
        let (places, at) = (&self.places, one.place());
        let Some(place) = places.get(&at) else { return false };
        if at != other.place() {
            return place.done < places.get(&other.place()).map_or(self.level, |other| other.done);
        }
        let of_other = place.lanes.get(&other).map_or(place.level, |other| other.done);
        place.lanes.get(&one).is_some_and(|lane| lane.done < of_other)
    }

    fn front(&self, owner: K) -> Option<&T> {
        self.places.get(&owner.place())?.lanes.get(&owner)?.front()
    }

    /// Takes the next item of a lane, out of turn.
    fn take(&mut self, owner: K) -> Option<T> {
        let place = self.places.get_mut(&owner.place())?;
        let lane = place.lanes.get_mut(&owner)?;
        let (cost, item) = lane.pop()?;
        lane.done = lane.done.saturating_add(cost);
        place.done = place.done.saturating_add(cost);
        place.len -= 1;
        self.len -= 1;
        Some(item)
    }

    /// Takes the next item of the lane for which least was done, at the place for which least was done.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let waiting = self.places.values_mut().filter(|place| place.len > 0);
        let place = waiting.min_by_key(|place| (place.done, place.turn))?;
        let waiting = place.lanes.values_mut().filter(|lane| lane.len() > 0);
        let lane = waiting.min_by_key(|lane| (lane.done, lane.turn))?;
        let (cost, item) = lane.pop()?;
        place.level = lane.done;
        lane.done = lane.done.saturating_add(cost);
        lane.turn = self.turn;
        self.level = place.done;
        place.done = place.done.saturating_add(cost);
        place.turn = self.turn;
        place.len -= 1;
        self.turn += 1;
        self.len -= 1;
        let level = place.level;
        place.lanes.retain(|_, lane| lane.len() > 0 || lane.done > level);
        let level = self.level;
        self.places.retain(|_, place| place.len > 0 || place.done > level);
        Some(item)
    }
}

#[cfg(test)]
mod tests;
