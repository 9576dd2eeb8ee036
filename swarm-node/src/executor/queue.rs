//! A bounded queue that shares work among its peers, and finishes what each of them began.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Each peer has a lane, and the lane for which least was done comes next, so that peers get equal shares of the work
/// however large their items are. What a lane was given before it was empty does not count for long: who comes (back)
/// starts level with those that wait. Within a lane urgent items go before others, each in the order of their arrival: a
/// backward before the forwards behind it, so that few stashes are held at a time.
///
/// A full queue is shared as well: who has less waiting than another displaces that other's newest item.
#[derive(Debug)]
pub(crate) struct FairQueue<K, T> {
    lanes: HashMap<K, Lane<T>>,
    /// What was done for the lane that was served last, before that: nobody who waits has less.
    level: u64,
    /// Numbers turns, so that of equal lanes the one comes first that waited longer.
    turn: u64,
    len: usize,
    capacity: usize,
    lane_capacity: usize,
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
}

impl<K: Eq + Hash + Copy, T> FairQueue<K, T> {
    pub(crate) fn new(capacity: usize, lane_capacity: usize) -> Self {
        Self { lanes: HashMap::new(), level: 0, turn: 0, len: 0, capacity, lane_capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Everything that waits, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.values().flat_map(|lane| lane.urgent.iter().chain(&lane.others)).map(|(_, item)| item)
    }

    /// Appends an item of `cost` to the lane of `key`, and gives back the item that it displaced, if any. An error is the
    /// item itself, for which there is no room.
    pub(crate) fn push(&mut self, key: K, item: T, cost: u64, urgent: bool) -> Result<Option<T>, T> {
        let waiting = self.lanes.get(&key).map_or(0, Lane::len);
        if waiting >= self.lane_capacity {
            return Err(item);
        }
        let mut displaced = None;
        if self.len >= self.capacity {
            let longest = self.lanes.values_mut().max_by_key(|lane| lane.len());
            let Some(longest) = longest.filter(|lane| lane.len() > waiting + 1) else { return Err(item) };
            displaced = longest.others.pop_back().or_else(|| longest.urgent.pop_back());
            self.len -= usize::from(displaced.is_some());
        }
        let (level, turn) = (self.level, self.turn);
        let empty = || Lane { urgent: VecDeque::new(), others: VecDeque::new(), done: level, turn };
        let lane = self.lanes.entry(key).or_insert_with(empty);
        if waiting == 0 {
            lane.done = lane.done.max(level);
            lane.turn = turn;
            self.turn += 1;
        }
        if urgent { &mut lane.urgent } else { &mut lane.others }.push_back((cost.max(1), item));
        self.len += 1;
        Ok(displaced.map(|(_, item)| item))
    }

    /// Takes all that fits of the items that are next in their lanes; they count as the lanes' shares like others.
    pub(crate) fn pop_those(&mut self, fits: &mut impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for lane in self.lanes.values_mut() {
            while lane.urgent.front().or(lane.others.front()).is_some_and(|(_, item)| fits(item)) {
                let Some((cost, item)) = lane.urgent.pop_front().or_else(|| lane.others.pop_front()) else { break };
                lane.done = lane.done.saturating_add(cost);
                taken.push(item);
            }
        }
        self.len -= taken.len();
        taken
    }

    /// Takes the next item of the lane for which least was done.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let waiting = self.lanes.values_mut().filter(|lane| lane.len() > 0);
        let lane = waiting.min_by_key(|lane| (lane.done, lane.turn))?;
        let (cost, item) = lane.urgent.pop_front().or_else(|| lane.others.pop_front())?;
        self.level = lane.done;
        lane.done = lane.done.saturating_add(cost);
        lane.turn = self.turn;
        self.turn += 1;
        self.len -= 1;
        let level = self.level;
        self.lanes.retain(|_, lane| lane.len() > 0 || lane.done > level);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push<T>(queue: &mut FairQueue<char, T>, key: char, item: T, urgent: bool) {
        assert!(matches!(queue.push(key, item, 1, urgent), Ok(None)));
    }

    #[test]
    fn lanes_take_turns() {
        let mut queue = FairQueue::new(10, 10);
        for n in 0..3 {
            push(&mut queue, 'a', ('a', n), false);
        }
        push(&mut queue, 'b', ('b', 0), false);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 0), ('b', 0), ('a', 1), ('a', 2)]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn urgent_items_go_first_in_their_lane_and_no_further() {
        let mut queue = FairQueue::new(10, 10);
        for (item, urgent) in [(0, false), (1, false), (2, true), (3, false), (4, true)] {
            push(&mut queue, 'a', ('a', item), urgent);
        }
        push(&mut queue, 'b', ('b', 0), false);
        push(&mut queue, 'b', ('b', 1), false);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 2), ('b', 0), ('a', 4), ('b', 1), ('a', 0), ('a', 1), ('a', 3)]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn work_is_shared_and_not_the_number_of_items() {
        let mut queue = FairQueue::new(1000, 1000);
        for n in 0..100 {
            assert_eq!(queue.push('a', ('a', 40), 40, n % 2 == 0), Ok(None));
            assert_eq!(queue.push('b', ('b', 1), 1, false), Ok(None));
            assert_eq!(queue.push('c', ('c', 7), 7, false), Ok(None));
        }
        let mut work = HashMap::from([('a', 0), ('b', 0), ('c', 0)]);
        for _ in 0..120 {
            let (lane, cost) = queue.pop().unwrap();
            *work.get_mut(&lane).unwrap() += cost;
            let [least, most] = [work.values().min(), work.values().max()].map(|work| *work.unwrap());
            assert!(most - least <= 40, "nobody is ahead by more than one item: {work:?}");
        }
    }

    #[test]
    fn who_comes_late_or_back_is_neither_owed_nor_ahead() {
        let mut queue = FairQueue::new(100, 100);
        for _ in 0..10 {
            push(&mut queue, 'a', 'a', false);
        }
        for _ in 0..4 {
            queue.pop();
        }
        for _ in 0..10 {
            push(&mut queue, 'b', 'b', false);
        }
        let next: String = (0..6).filter_map(|_| queue.pop()).collect();
        assert_eq!(next.matches('b').count(), 3, "not four to catch up with: {next}");
        // One item at a time, again and again: still no more than a share.
        let mut queue = FairQueue::new(100, 100);
        for _ in 0..10 {
            assert_eq!(queue.push('a', 'a', 5, false), Ok(None));
        }
        let mut order = String::new();
        for _ in 0..8 {
            assert_eq!(queue.push('c', 'c', 5, false), Ok(None));
            order.extend([queue.pop(), queue.pop()].into_iter().flatten());
        }
        assert_eq!(order.matches('c').count(), 8, "{order}");
        assert_eq!(order.matches('a').count(), 8, "{order}");
    }

    #[test]
    fn a_full_lane_leaves_room_for_others() {
        let mut queue = FairQueue::new(3, 2);
        assert_eq!([queue.push(1, 'a', 1, false), queue.push(1, 'b', 1, true)], [Ok(None); 2]);
        assert_eq!(queue.push(1, 'c', 1, true), Err('c'));
        assert_eq!(queue.push(2, 'd', 1, false), Ok(None));
        assert_eq!(queue.push(2, 'e', 1, false), Err('e'), "the queue as a whole is full");
    }

    #[test]
    fn a_full_queue_is_taken_from_who_has_most_of_it() {
        let mut queue = FairQueue::new(4, 4);
        for (item, urgent) in [(0, false), (1, true), (2, false), (3, true)] {
            assert_eq!(queue.push(1, (1, item), 1, urgent), Ok(None));
        }
        assert_eq!(queue.push(2, (2, 0), 1, false), Ok(Some((1, 2))), "the newest that is not urgent");
        assert_eq!(queue.push(2, (2, 1), 1, false), Ok(Some((1, 0))));
        assert_eq!(queue.push(2, (2, 2), 1, false), Err((2, 2)), "both have two now");
        assert!(matches!(queue.push(3, (3, 0), 1, false), Ok(Some((1 | 2, _)))));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!((order.len(), queue.len()), (4, 0));
    }
}
