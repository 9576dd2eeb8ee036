//! A bounded queue that serves its peers in turn.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// First in, first out within a lane; lanes take turns, so one busy peer delays another by one item at most.
#[derive(Debug)]
pub(crate) struct FairQueue<K, T> {
    lanes: HashMap<K, VecDeque<T>>,
    turn: VecDeque<K>,
    len: usize,
    capacity: usize,
    lane_capacity: usize,
}

impl<K: Eq + Hash + Copy, T> FairQueue<K, T> {
    pub(crate) fn new(capacity: usize, lane_capacity: usize) -> Self {
        Self { lanes: HashMap::new(), turn: VecDeque::new(), len: 0, capacity, lane_capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends to the lane of `key`, or gives the item back if the lane or the queue is full.
    pub(crate) fn push(&mut self, key: K, item: T) -> Result<(), T> {
        let lane_len = self.lanes.get(&key).map_or(0, VecDeque::len);
        if self.len >= self.capacity || lane_len >= self.lane_capacity {
            return Err(item);
        }
        if lane_len == 0 {
            self.turn.push_back(key);
        }
        self.lanes.entry(key).or_default().push_back(item);
        self.len += 1;
        Ok(())
    }

    /// Takes the next item of the lane whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let key = self.turn.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let item = lane.pop_front()?;
        self.len -= 1;
        if lane.is_empty() {
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
            queue.push('a', ('a', n)).unwrap();
        }
        queue.push('b', ('b', 0)).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 0), ('b', 0), ('a', 1), ('a', 2)]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_lane_leaves_room_for_others() {
        let mut queue = FairQueue::new(3, 2);
        assert!(queue.push(1, ()).is_ok() && queue.push(1, ()).is_ok());
        assert!(queue.push(1, ()).is_err());
        assert!(queue.push(2, ()).is_ok());
        assert!(queue.push(3, ()).is_err(), "the queue as a whole is full");
        queue.pop();
        assert!(queue.push(3, ()).is_ok());
    }
}
