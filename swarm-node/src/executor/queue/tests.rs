use super::*;

/// All at one place.
impl Owner for char {
    type Place = ();

    fn place(&self) {}
}

impl Owner for i32 {
    type Place = ();

    fn place(&self) {}
}

/// A place, and who is there.
impl Owner for (u8, u8) {
    type Place = u8;

    fn place(&self) -> u8 {
        self.0
    }
}

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

#[test]
fn addresses_share_first_and_then_the_peers_of_each() {
    let mut queue = FairQueue::new(1000, 1000);
    for _ in 0..60 {
        (0..10).for_each(|peer| assert_eq!(queue.push((1, peer), (1, peer), 5, false), Ok(None)));
        assert_eq!(queue.push((2, 0), (2, 0), 5, false), Ok(None));
    }
    let mut got = HashMap::<(u8, u8), u32>::new();
    (0..100).for_each(|_| *got.entry(queue.pop().unwrap()).or_default() += 1);
    assert_eq!(got[&(2, 0)], 50, "half of the work for one of two addresses");
    assert!((0..10).all(|peer| got[&(1, peer)] == 5), "{got:?}");
}

#[test]
fn a_full_queue_is_taken_from_the_address_that_has_most_of_it() {
    let mut queue = FairQueue::new(10, 10);
    (0..10).for_each(|peer| assert_eq!(queue.push((1, peer), (1, peer), 1, false), Ok(None)));
    assert_eq!(queue.push((1, 11), (1, 11), 1, false), Err((1, 11)), "one more id of the same address gets nothing");
    for _ in 0..5 {
        assert!(matches!(queue.push((2, 0), (2, 0), 1, false), Ok(Some((1, _)))));
    }
    assert!(queue.push((2, 0), (2, 0), 1, false).is_err(), "five each by now");
}

#[test]
fn who_had_least_goes_along_first() {
    let mut queue = FairQueue::new(1000, 1000);
    (0..64).for_each(|_| assert_eq!(queue.push('a', 'a', 1, true), Ok(None)));
    (0..2).for_each(|_| assert_eq!(queue.push('b', 'b', 1, true), Ok(None)));
    (0..2).for_each(|_| assert_eq!(queue.push('c', 'c', 1, true), Ok(None)));
    // A batch of six: one peer with very many steps does not fill it.
    let mut room = 6;
    let batch = queue.pop_those(&mut |_| {
        room -= 1;
        room >= 0
    });
    let count = |who: char| batch.iter().filter(|other| **other == who).count();
    assert_eq!((count('a'), count('b'), count('c')), (2, 2, 2), "{batch:?}");
    assert_eq!(queue.len(), 62);
}

#[test]
fn who_had_less_goes_beside_whoever_is_being_served() {
    let mut queue = FairQueue::new(100, 100);
    for (owner, cost) in [((1, 1), 100), ((1, 1), 1), ((1, 2), 2), ((2, 1), 3), ((2, 2), 300)] {
        assert!(queue.push(owner, cost, cost, false).is_ok());
    }
    assert_eq!(queue.pop(), Some(100), "of the first");
    let beside = |queue: &mut FairQueue<(u8, u8), u64>| queue.pop_beside((1, 1), &mut |_, less| less);
    let order: Vec<u64> = std::iter::from_fn(|| beside(&mut queue)).collect();
    assert_eq!(
        order,
        [3, 300, 2],
        "the other address until it had more, then the other peer of the same one; itself never"
    );
    let mut told = Vec::new();
    assert_eq!(
        queue.pop_beside((1, 1), &mut |item, less| {
            told.push((*item, less));
            false
        }),
        None
    );
    assert_eq!((told, queue.len()), (vec![(1, false)], 1));
}
