use petals_swarm::{Origin, PeerId};
use rand::{Rng, SeedableRng};

use super::*;

/// 100 bytes a page.
fn memory(positions: u32) -> SessionMemory {
    SessionMemory::new(u64::from(positions), 0, |positions| 100 * positions.div_ceil(PAGE_TOKENS as u64))
}

/// A peer of its own, at the same place as all others.
fn someone() -> Party {
    Party::unplaced(PeerId::random())
}

fn at(number: u8) -> Party {
    Party { peer: PeerId::random(), origin: Origin::Ip4([10, 0, 0, number].into()) }
}

fn span() -> Span {
    Span::new(0, 2).unwrap()
}

fn limits(max_sequences: u32, max_positions: u32) -> SessionOpen {
    SessionOpen { max_sequences, max_positions }
}

#[test]
fn memory_is_taken_at_once_and_given_back_once() {
    let (mut store, peer, now) = (SessionStore::new(1000, Duration::from_secs(60)), someone(), Instant::now());
    store.open_stream(1);
    let key = (1, SessionId(5));
    let session = store.admit(key, peer, span(), limits(2, 65), memory(65)).unwrap();
    assert_eq!((store.bytes(), store.tokens_left(100)), (400, 6 * PAGE_TOKENS as u64));
    assert!(matches!(store.take(key), Err(Refusal::SessionGone)), "not there while it computes");
    store.end(key);
    store.put(key, session, now);
    assert!(matches!(store.take(key), Err(Refusal::SessionGone)), "it ended meanwhile");
    assert_eq!(store.bytes(), 0);
    let session = store.admit(key, peer, span(), limits(2, 65), memory(65)).unwrap();
    store.put(key, session, now);
    assert!(matches!(
        store.admit((1, SessionId(6)), peer, span(), limits(1, 128), memory(128)),
        Err(Refusal::Busy { .. })
    ));
    assert!(store.admit((1, SessionId(6)), someone(), span(), limits(1, 128), memory(128)).is_ok());
    assert!(matches!(
        store.admit((1, SessionId(7)), peer, span(), limits(6, 1), memory(1)),
        Err(Refusal::TooLarge { got: 600, limit: 500, .. })
    ));
    assert!(store.admit(key, peer, span(), limits(1, 1), memory(1)).is_ok(), "a session replaces its namesake");
    let with_tables = SessionMemory::new(1, 450, |_| 100);
    assert!(matches!(
        store.admit((1, SessionId(8)), someone(), span(), limits(1, 1), with_tables),
        Err(Refusal::TooLarge { got: 550, limit: 500, .. })
    ));
}

#[test]
fn idle_sessions_make_room() {
    let (mut store, now) = (SessionStore::new(1000, Duration::from_secs(600)), Instant::now());
    store.open_stream(1);
    let long_ago = now.checked_sub(2 * IDLE).unwrap();
    for (id, used) in [(1, long_ago), (2, now)] {
        let key = (1, SessionId(id));
        let session = store.admit(key, someone(), span(), limits(1, 5 * 64), memory(5 * 64)).unwrap();
        store.put(key, session, used);
    }
    let third = store.admit((1, SessionId(3)), someone(), span(), limits(1, 64), memory(64));
    assert!(third.is_ok(), "the first one has gone");
    assert!(matches!(store.take((1, SessionId(1))), Err(Refusal::SessionGone)));
    let fourth = store.admit((1, SessionId(4)), someone(), span(), limits(1, 5 * 64), memory(5 * 64));
    assert!(matches!(fourth, Err(Refusal::Busy { .. })), "the second one was just used");
    assert!(store.take((1, SessionId(2))).is_ok());
}

#[test]
fn who_has_its_share_takes_no_room_of_others() {
    let (mut store, now, peer) = (SessionStore::new(1000, Duration::from_secs(600)), Instant::now(), someone());
    store.open_stream(1);
    for (id, of) in [(1, someone()), (2, peer)] {
        let session = store.admit((1, SessionId(id)), of, span(), limits(1, 5 * 64), memory(5 * 64)).unwrap();
        store.put((1, SessionId(id)), session, now.checked_sub(2 * IDLE).unwrap());
    }
    let more = store.admit((1, SessionId(3)), peer, span(), limits(1, 64), memory(64));
    assert!(matches!(more, Err(Refusal::Busy { .. })));
    assert!(store.take((1, SessionId(1))).is_ok(), "it was idle, but nothing was gained by its end");
}

#[test]
fn accounts_are_exact_after_a_thousand_sessions_of_every_fate() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let mut store = SessionStore::new(20_000, Duration::from_secs(60));
    let peers: Vec<Party> = (0..5).map(|_| someone()).collect();
    let mut now = Instant::now();
    let mut computing: Vec<(SessionKey, Session)> = Vec::new();
    for n in 0..1000u64 {
        let key = (rng.random_range(0..8), SessionId(n % 50));
        store.open_stream(key.0);
        let limits = limits(rng.random_range(1..4), rng.random_range(1..300));
        if let Ok(session) = store.admit(key, peers[(key.0 % 5) as usize], span(), limits, memory(limits.max_positions))
        {
            computing.push((key, session));
        }
        now += Duration::from_millis(rng.random_range(0..2000));
        match rng.random_range(0..6) {
            0 => store.forget_stream(rng.random_range(0..8)),
            1 => store.expire(now),
            2 => store.end((rng.random_range(0..8), SessionId(rng.random_range(0..50)))),
            3 => computing.extend(store.take(key).map(|session| (key, session))),
            _ => {
                while let Some((key, session)) = computing.pop() {
                    if rng.random_bool(0.2) {
                        drop(session);
                    } else {
                        store.put(key, session, now);
                    }
                }
            }
        }
        let held = store.sessions.values().chain(computing.iter().map(|(_, session)| session));
        assert_eq!(store.bytes(), held.map(|session| session.taken.bytes).sum::<u64>());
        assert_eq!(store.bytes(), peers.iter().map(|peer| lock(&store.shares).held_by(*peer)).sum::<u64>());
        assert!(store.bytes() <= 20_000);
    }
    computing.into_iter().for_each(|(key, session)| store.put(key, session, now));
    (0..8).for_each(|stream| store.forget_stream(stream));
    assert_eq!((store.bytes(), lock(&store.shares).is_empty()), (0, true));
}

/// Opens a session and puts it back unused.
fn open(store: &mut SessionStore, id: u64, party: Party, positions: u32) -> Result<(), Refusal> {
    let key = (1, SessionId(id));
    let session = store.admit(key, party, span(), limits(1, positions), memory(positions))?;
    store.put(key, session, Instant::now());
    Ok(())
}

#[test]
fn two_ids_that_hold_everything_give_way_to_who_has_nothing() {
    let mut store = SessionStore::new(1600, Duration::from_secs(600));
    store.open_stream(1);
    let attacker = at(1);
    for (id, party) in [(1, attacker), (2, Party { peer: PeerId::random(), ..attacker })] {
        open(&mut store, id, party, 8 * 64).unwrap();
    }
    assert_eq!(store.bytes(), 1600, "each has half");
    let honest = at(2);
    open(&mut store, 3, honest, 4 * 64).unwrap();
    let held = |store: &SessionStore, party| lock(&store.shares).held_by(party);
    assert_eq!((held(&store, honest), store.len()), (400, 3), "nobody's session ended");
    // What was given back can be taken again as long as there is room.
    let shrunk =
        [1, 2].map(|id| (1, SessionId(id))).into_iter().find(|key| store.sessions[key].taken.bytes < 800).unwrap();
    let mut session = store.take(shrunk).unwrap();
    assert_eq!((session.taken.bytes, store.bytes()), (100, 1300));
    assert_eq!(store.grow(&mut session, 2 * 64), Ok(()));
    assert_eq!((session.taken.bytes, store.bytes()), (200, 1400));
    store.put(shrunk, session, Instant::now());
    // Half of it for each address, however many ids there are.
    open(&mut store, 4, honest, 4 * 64).unwrap();
    let beyond = open(&mut store, 5, honest, 64);
    assert!(matches!(beyond, Err(Refusal::Busy { .. })), "{beyond:?}");
}

#[test]
fn a_lone_address_has_it_all_and_its_peers_share_it() {
    let mut store = SessionStore::new(1600, Duration::from_secs(600));
    store.open_stream(1);
    let (one, two, three) = (someone(), someone(), someone());
    open(&mut store, 1, one, 8 * 64).unwrap();
    open(&mut store, 2, two, 8 * 64).unwrap();
    open(&mut store, 3, three, 5 * 64).unwrap();
    assert!(store.take((1, SessionId(1))).is_ok() && store.take((1, SessionId(2))).is_ok());
}
