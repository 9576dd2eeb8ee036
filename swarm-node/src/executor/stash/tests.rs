use petals_protocol::{Injection, Span};
use petals_swarm::{Origin, PeerId};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn layout(tokens: u32) -> PassLayout {
    let span = Span::new(0, 1).unwrap();
    PassLayout {
        span,
        lengths: vec![tokens],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    }
}

/// A store of texts that become lower case when they are reduced.
fn store(budget: u64) -> StashStore<String> {
    let mut store = StashStore::new(budget, MINUTE, |text: String| text.to_lowercase());
    let party = Party::unplaced(PeerId::random());
    store.open_stream(1, party);
    store.open_stream(2, party);
    store.open_stream(3, Party::unplaced(PeerId::random()));
    store
}

fn key(stream: u64, id: u64) -> StashKey {
    (stream, StashId(id))
}

const SIZES: Sizes = Sizes { full: 10, inputs: Some(2) };
const FULL: Size = Size { bytes: 10, reduced: Some(2) };

/// Leaves stash `id` on stream 1 at whatever level the store allows.
fn leave(store: &mut StashStore<String>, id: u64, now: Instant) -> StashLevel {
    leave_on(store, 1, id, now)
}

fn leave_on(store: &mut StashStore<String>, stream: u64, id: u64, now: Instant) -> StashLevel {
    let level = store.make_room(stream, StashPolicy::Auto, SIZES, now);
    let size = match level {
        StashLevel::Full => FULL,
        StashLevel::Inputs => Size { bytes: 2, reduced: None },
        StashLevel::None => return level,
    };
    assert!(store.insert(key(stream, id), layout(1), format!("S{id}"), size, now));
    assert!(store.bytes() <= store.budget());
    level
}

fn take(store: &mut StashStore<String>, id: u64) -> Option<String> {
    store.take(key(1, id), &layout(1))
}

#[test]
fn room_that_passes_beside_it_took_is_not_taken_twice() {
    let (mut store, now) = (store(20), Instant::now());
    let insert =
        |store: &mut StashStore<String>, stream| store.insert(key(stream, 1), layout(1), "S".into(), FULL, now);
    // Both are computed at a time, and others leave something meanwhile.
    for stream in [1, 3] {
        assert_eq!(store.make_room(stream, StashPolicy::Auto, SIZES, now), StashLevel::Full);
    }
    assert_eq!(leave_on(&mut store, 3, 2, now), StashLevel::Full);
    assert_eq!(leave_on(&mut store, 3, 3, now), StashLevel::Full);
    assert!(insert(&mut store, 1), "it has its share");
    assert!(!insert(&mut store, 3), "and that is beyond it");
    assert!(store.bytes() <= store.budget());
}

#[test]
fn a_stash_is_used_once_and_only_under_its_layout() {
    let now = Instant::now();
    let mut store = store(100);
    assert!(store.insert(key(1, 1), layout(3), "a".into(), FULL, now));
    assert!(store.insert(key(1, 2), layout(3), "b".into(), FULL, now));
    assert_eq!(store.take(key(2, 1), &layout(3)), None, "another stream");
    assert_eq!(store.take(key(1, 1), &layout(3)), Some("a".into()));
    assert_eq!(store.take(key(1, 1), &layout(3)), None);
    assert_eq!(store.take(key(1, 2), &layout(4)), None, "another layout");
    assert_eq!((store.bytes(), store.order.len()), (0, 0));
}

#[test]
fn the_new_one_gives_way_before_old_ones_are_reduced() {
    let now = Instant::now();
    let mut store = store(25);
    let levels: Vec<StashLevel> = (0..4).map(|id| leave(&mut store, id, now)).collect();
    assert_eq!(levels, [StashLevel::Full, StashLevel::Full, StashLevel::Inputs, StashLevel::Inputs]);
    // 24 of 25 bytes are held: the oldest is reduced, which gives 8 bytes back.
    assert_eq!((leave(&mut store, 4, now), store.bytes()), (StashLevel::Inputs, 18));
    let texts: Vec<_> = (0..5).map(|id| take(&mut store, id)).collect();
    assert_eq!(texts, ["s0", "S1", "S2", "S3", "S4"].map(|text| Some(text.to_owned())));
    assert_eq!(store.bytes(), 0);
}

#[test]
fn fresh_stashes_are_not_dropped_for_a_new_one_and_stale_ones_are_oldest_first() {
    let start = Instant::now();
    let mut store = store(10);
    for id in 0..5 {
        leave(&mut store, id, start + Duration::from_secs(id));
    }
    assert_eq!(store.bytes(), 10, "five reduced ones");
    assert_eq!(leave(&mut store, 5, start + Duration::from_secs(6)), StashLevel::None);
    let later = start + Duration::from_millis(7500);
    assert_eq!(leave(&mut store, 6, later), StashLevel::Inputs);
    let left: Vec<u64> = (0..7).filter(|&id| take(&mut store, id).is_some()).collect();
    assert_eq!(left, [1, 2, 3, 4, 6], "two had waited for more than 6 s, one was enough");
}

#[test]
fn a_peer_that_holds_more_than_its_share_gives_way_to_one_that_holds_less() {
    let now = Instant::now();
    let mut store = store(45);
    for id in 0..4 {
        assert_eq!(leave(&mut store, id, now), StashLevel::Full);
    }
    assert_eq!(leave(&mut store, 4, now), StashLevel::Inputs, "a lone peer may have everything");
    // A share is 22 bytes now: two whole stashes of the other one, at the price of the first one's oldest.
    assert_eq!([5, 6].map(|id| leave_on(&mut store, 3, id, now)), [StashLevel::Full; 2]);
    assert_eq!(store.bytes(), 18 + 20, "reduced, not dropped");
    let texts: Vec<_> = (0..5).map(|id| take(&mut store, id)).collect();
    assert_eq!(texts, ["s0", "s1", "s2", "S3", "S4"].map(|text| Some(text.to_owned())));
    // Beyond its own share it takes nothing from others.
    for id in 7..9 {
        leave(&mut store, id, now);
    }
    assert_eq!(store.make_room(3, StashPolicy::Full, SIZES, now), StashLevel::None);
    assert_eq!((take(&mut store, 7), take(&mut store, 8)), (Some("S7".into()), Some("S8".into())));
}

#[test]
fn what_cannot_be_reduced_is_dropped_for_one_that_holds_less_than_its_share() {
    let now = Instant::now();
    let mut store = store(20);
    for id in 0..10 {
        let level = store.make_room(1, StashPolicy::Inputs, SIZES, now);
        assert_eq!(level, StashLevel::Inputs);
        assert!(store.insert(key(1, id), layout(1), "i".into(), Size { bytes: 2, reduced: None }, now));
    }
    assert_eq!(leave_on(&mut store, 3, 0, now), StashLevel::Full);
    assert_eq!((store.bytes(), take(&mut store, 4), take(&mut store, 5)), (20, None, Some("i".into())));
}

#[test]
fn forced_levels_are_kept_to() {
    let now = Instant::now();
    for (policy, levels) in [
        (StashPolicy::Full, [StashLevel::Full, StashLevel::None]),
        (StashPolicy::Inputs, [StashLevel::Inputs, StashLevel::Inputs]),
        (StashPolicy::None, [StashLevel::None, StashLevel::None]),
    ] {
        let mut store = store(15);
        let first = store.make_room(1, policy, SIZES, now);
        assert!(store.insert(key(1, 1), layout(1), "FIRST".into(), FULL, now));
        assert_eq!([first, store.make_room(1, policy, SIZES, now)], levels, "{policy:?}");
        assert_eq!(take(&mut store, 1), Some("FIRST".into()));
    }
    assert_eq!("inputs".parse(), Ok(StashPolicy::Inputs));
    assert!("some".parse::<StashPolicy>().is_err());
}

#[test]
fn an_impossible_wish_changes_nothing() {
    let now = Instant::now();
    let mut store = store(25);
    leave(&mut store, 0, now);
    leave(&mut store, 1, now);
    let wish = Sizes { full: 100, inputs: Some(26) };
    assert_eq!(store.make_room(1, StashPolicy::Auto, wish, now + MINUTE / 2), StashLevel::None);
    let wish = Sizes { full: 26, inputs: None };
    assert_eq!(store.make_room(1, StashPolicy::Auto, wish, now + MINUTE / 2), StashLevel::None);
    assert_eq!((store.bytes(), take(&mut store, 0), take(&mut store, 1)), (20, Some("S0".into()), Some("S1".into())));
    let wish = Sizes { full: u64::MAX, inputs: Some(u64::MAX) };
    assert_eq!(store.make_room(1, StashPolicy::Auto, wish, now), StashLevel::None);
}

#[test]
fn time_and_the_end_of_a_stream_free_memory() {
    let start = Instant::now();
    let mut store = store(100);
    assert!(store.insert(key(1, 1), layout(1), String::new(), FULL, start));
    assert!(store.insert(key(2, 1), layout(1), String::new(), FULL, start + Duration::from_secs(50)));
    store.expire(start + Duration::from_secs(61));
    assert_eq!(store.bytes(), 10);
    store.forget_stream(2);
    assert_eq!((store.bytes(), store.order.len()), (0, 0));
}

#[test]
fn what_comes_after_the_end_of_its_stream_is_not_kept() {
    let mut store = store(100);
    store.forget_stream(1);
    assert!(!store.insert(key(1, 1), layout(1), String::new(), FULL, Instant::now()));
    assert_eq!(store.bytes(), 0);
}

#[test]
fn ids_of_one_address_give_way_together_to_another_address() {
    let now = Instant::now();
    let mut store = store(100);
    let at = |number: u8| Party { peer: PeerId::random(), origin: Origin::Ip4([10, 0, 0, number].into()) };
    let attacker = at(1);
    for stream in 10..20 {
        store.open_stream(stream, Party { peer: PeerId::random(), ..attacker });
        assert_eq!(leave_on(&mut store, stream, 1, now), StashLevel::Full);
    }
    let honest = at(2);
    store.open_stream(20, honest);
    for id in 1..=5 {
        assert_eq!(leave_on(&mut store, 20, id, now), StashLevel::Full, "half of it is the other address's");
    }
    assert!(store.take(key(20, 1), &layout(1)).is_some() && store.bytes() <= 100);
}

#[test]
fn a_full_store_takes_a_new_stash_in_a_time_that_does_not_depend_on_how_much_it_holds() {
    let now = Instant::now();
    let time = |count: u64| {
        let mut store = StashStore::new(count, MINUTE, |text: String| text);
        store.open_stream(1, Party::unplaced(PeerId::random()));
        let size = Size { bytes: 1, reduced: None };
        for id in 0..count {
            assert!(store.insert(key(1, id), layout(1), String::new(), size, now));
        }
        let started = Instant::now();
        for _ in 0..1000 {
            let sizes = Sizes { full: 1, inputs: Some(1) };
            assert_eq!(store.make_room(1, StashPolicy::Auto, sizes, now), StashLevel::None);
        }
        let full = started.elapsed();
        (0..100).for_each(|stream| store.forget_stream(100 + stream));
        full
    };
    // A hundred times as much would take a hundred times as long.
    let (few, many) = (time(1_000).max(Duration::from_micros(100)), time(100_000));
    assert!(many < 50 * few, "{few:?} with 1,000 and {many:?} with 100,000");
}
