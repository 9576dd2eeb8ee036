//! A bounded queue that serves its peers in turn, and what finishes their work first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Lanes take turns, so one busy peer delays another by one item at most. Within a lane urgent items go before others,
/// each in the order of their arrival: a backward before the forwards behind it, so that few stashes are held at a time.
#[derive(Debug)]
pub(crate) struct FairQueue<K, T> {
    lanes: HashMap<K, Lane<T>>,
    turn: VecDeque<K>,
    len: usize,
    capacity: usize,
    lane_capacity: usize,
}

#[derive(Debug)]
struct Lane<T> {
    urgent: VecDeque<T>,
    others: VecDeque<T>,
}

impl<T> Lane<T> {
    fn len(&self) -> usize {
        self.urgent.len() + self.others.len()
    }
}

impl<K: Eq + Hash + Copy, T> FairQueue<K, T> {
    pub(crate) fn new(capacity: usize, lane_capacity: usize) -> Self {
        Self { lanes: HashMap::new(), turn: VecDeque::new(), len: 0, capacity, lane_capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends to the lane of `key`, or gives the item back if the lane or the queue is full.
    pub(crate) fn push(&mut self, key: K, item: T, urgent: bool) -> Result<(), T> {
        let lane_len = self.lanes.get(&key).map_or(0, Lane::len);
        if self.len >= self.capacity || lane_len >= self.lane_capacity {
            return Err(item);
        }
        if lane_len == 0 {
            self.turn.push_back(key);
        }
        let empty = || Lane { urgent: VecDeque::new(), others: VecDeque::new() };
        let lane = self.lanes.entry(key).or_insert_with(empty);
        if urgent {
            lane.urgent.push_back(item)
        } else {
            lane.others.push_back(item)
        }
        self.len += 1;
        Ok(())
    }

    /// Takes the next item of the lane whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let key = self.turn.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let item = lane.urgent.pop_front().or_else(|| lane.others.pop_front())?;
        self.len -= 1;
        if lane.len() == 0 {
            self.lanes.remove(&key);
        } else {
            self.turn.push_back(key);
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_turns() {
        let mut queue = FairQueue::new(10, 10);
        for n in 0..3 {
            queue.push('a', ('a', n), false).unwrap();
        }
        queue.push('b', ('b', 0), false).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 0), ('b', 0), ('a', 1), ('a', 2)]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn urgent_items_go_first_in_their_lane_and_no_further() {
        let mut queue = FairQueue::new(10, 10);
        for (item, urgent) in [(0, false), (1, false), (2, true), (3, false), (4, true)] {
            queue.push('a', ('a', item), urgent).unwrap();
        }
        queue.push('b', ('b', 0), false).unwrap();
        queue.push('b', ('b', 1), false).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 2), ('b', 0), ('a', 4), ('b', 1), ('a', 0), ('a', 1), ('a', 3)]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_lane_leaves_room_for_others() {
        let mut queue = FairQueue::new(3, 2);
        assert!(queue.push(1, (), false).is_ok() && queue.push(1, (), true).is_ok());
        assert!(queue.push(1, (), true).is_err());
        assert!(queue.push(2, (), false).is_ok());
        assert!(queue.push(3, (), false).is_err(), "the queue as a whole is full");
        queue.pop();
        assert!(queue.push(3, (), false).is_ok());
    }
}
