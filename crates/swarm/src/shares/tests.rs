use super::*;

fn at(number: u8) -> Party {
    Party { peer: PeerId::random(), origin: Origin::Ip4([10, 0, 0, number].into()) }
}

/// Another id at the same address.
fn beside(party: Party) -> Party {
    Party { peer: PeerId::random(), ..party }
}

/// Takes one after the other until no more is given, and says how much that was.
fn fill(shares: &mut Shares, party: Party) -> u64 {
    let before = shares.held_by(party);
    while shares.may_take(party, 1) {
        shares.take(party, 1);
    }
    shares.held_by(party) - before
}

fn origin(local: &str, remote: &str) -> Origin {
    Origin::of(&local.parse().unwrap(), &remote.parse().unwrap())
}

#[test]
fn an_address_is_an_address_of_ipv4_a_net_of_ipv6_or_a_relay() {
    let here = "/ip4/10.0.0.1/tcp/1";
    assert_eq!(origin(here, "/ip4/10.0.0.2/tcp/5"), Origin::Ip4([10, 0, 0, 2].into()));
    assert_eq!(origin(here, "/ip4/10.0.0.2/udp/5/quic-v1"), Origin::Ip4([10, 0, 0, 2].into()));
    assert_eq!(origin(here, "/ip6/::ffff:10.0.0.2/tcp/5"), Origin::Ip4([10, 0, 0, 2].into()));
    let net = origin(here, "/ip6/2001:db8:1:2::1/tcp/5");
    assert_eq!(net, origin(here, "/ip6/2001:db8:1:2:ffff::9/tcp/7"));
    assert_ne!(net, origin(here, "/ip6/2001:db8:1:3::1/tcp/5"));
    let (relay, far) = (PeerId::random(), PeerId::random());
    // A circuit that another opened says on this side which relay it came through, one that was dialled on the other.
    let circuit = format!("/ip4/203.0.113.5/tcp/1/p2p/{relay}/p2p-circuit");
    assert_eq!(origin(&circuit, &format!("/p2p/{far}")), Origin::Relay(relay));
    assert_eq!(origin(here, &format!("{circuit}/p2p/{far}")), Origin::Relay(relay));
    assert_eq!(origin(here, "/dns4/example.org/tcp/5"), Origin::Unknown);
}

#[test]
fn who_is_alone_has_most_of_it_and_leaves_something_for_the_next() {
    let mut shares = Shares::new(1600);
    let (alone, next) = (at(1), at(2));
    let had = fill(&mut shares, alone);
    assert!((850..=900).contains(&had), "{had}");
    assert!(had <= shares.most(), "{}", shares.most());
    let others = [beside(alone), beside(alone), beside(alone)].map(|peer| fill(&mut shares, peer));
    assert!(others[0] >= 200 && others[2] > 0, "{others:?}");
    assert!(shares.held() <= 1200, "a quarter is left for other addresses");
    assert!(fill(&mut shares, next) >= 200);
}

#[test]
fn a_thousand_ids_of_one_address_get_what_one_address_gets() {
    let mut shares = Shares::new(16_000);
    let first = at(1);
    let crowd: Vec<Party> = (0..1000).map(|_| beside(first)).collect();
    for peer in &crowd {
        fill(&mut shares, *peer);
    }
    assert!(shares.held_at(first.origin) <= 12_000);
    let honest = at(2);
    assert_eq!(shares.portion(honest), 8_000);
    assert!(shares.may_take(honest, 2_600), "{} free", shares.free());
    assert!(!shares.may_take(crowd[0], 1_000));
}

#[test]
fn a_modest_part_is_given_whatever_others_hold_as_long_as_it_is_there() {
    let mut shares = Shares::new(1200);
    let (greedy, modest) = (at(1), at(2));
    fill(&mut shares, greedy);
    // Of two addresses: one part in three, of that one in two for a peer that is not alone there.
    assert!(shares.is_modest(modest, 200) && shares.may_take(modest, 200));
    assert!(!shares.is_modest(modest, 201));
    let free = shares.free();
    assert!(!shares.may_take(modest, free + 1));
}

#[test]
fn who_holds_most_gives_way_first() {
    let mut shares = Shares::new(100);
    let (one, two) = (at(1), at(2));
    let other = beside(one);
    shares.take(one, 60);
    shares.take(other, 40);
    assert_eq!(shares.ahead(other, one), None, "there are two of them");
    assert!(shares.is_portion(two, 50) && !shares.is_portion(two, 51));
    assert!(shares.ahead(one, two) > shares.ahead(other, two), "with another address there they have half together");
    assert!(shares.ahead(other, two).is_some());
    shares.give(one, 40);
    shares.give(other, 15);
    shares.take(two, 50);
    assert_eq!((shares.ahead(one, two), shares.ahead(other, two), shares.ahead(two, one)), (None, None, None));
    let third = beside(one);
    assert!(shares.is_portion(third, 5), "50 for three of them, of which 45 are taken");
    assert!(shares.ahead(one, third).is_some() && shares.ahead(other, third).is_some());
}

#[test]
fn what_is_given_back_leaves_nothing_behind() {
    let mut shares = Shares::new(100);
    let parties: Vec<Party> = (0..20).map(at).collect();
    for (n, party) in parties.iter().enumerate() {
        shares.take(*party, n as u64 % 5);
    }
    for (n, party) in parties.iter().enumerate() {
        shares.give(*party, n as u64 % 5);
        shares.give(*party, 7);
    }
    assert!(shares.is_empty() && shares.held() == 0 && shares.free() == 100);
    assert_eq!((shares.members.len(), shares.origins.len()), (0, 0));
}

#[test]
fn a_seat_asks_and_takes_as_its_party_does_and_counts_for_nothing_itself() {
    let (mut seated, mut named) = (Shares::new(1200), Shares::new(1200));
    let parties = [at(1), at(2), at(2), at(3)];
    // Some who have a place and hold nothing make nobody's part smaller.
    let seats: Vec<Seat> = parties.iter().map(|party| seated.seat(*party)).collect();
    let mut random = 1u64;
    for _ in 0..2000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (who, amount) = ((random >> 33) as usize % parties.len(), random >> 40 & 255);
        let (seat, party) = (seats[who], parties[who]);
        assert_eq!(seated.may_take(seat, amount), named.may_take(party, amount));
        assert_eq!(seated.is_modest(seat, amount), named.is_modest(party, amount));
        assert_eq!((seated.portion(seat), seated.held_by(party)), (named.portion(party), named.held_by(party)));
        if named.may_take(party, amount) && random >> 63 == 0 {
            seated.take(seat, amount);
            named.take(party, amount);
        } else {
            seated.give(seat, amount);
            named.give(party, amount);
        }
        assert_eq!((seated.held(), seated.is_empty()), (named.held(), named.is_empty()));
    }
    seats.iter().for_each(|seat| seated.leave(*seat));
    assert_eq!(seated.members.len(), parties.iter().filter(|party| named.held_by(**party) > 0).count());
    parties.iter().for_each(|party| seated.give(*party, 1200));
    assert_eq!((seated.members.len(), seated.origins.len(), seated.held()), (0, 0, 0));
}

#[test]
fn who_is_gone_leaves_its_row_to_whoever_comes_next() {
    let mut shares = Shares::new(100);
    let keeps = shares.seat(at(1));
    for number in 0..100 {
        let (party, other) = (at(number % 7), at(number % 5));
        let seats = [shares.seat(party), shares.seat(party), shares.seat(other)];
        shares.take(seats[1], 3);
        shares.leave(seats[0]);
        assert_eq!((shares.held_by(party), shares.held_by(seats[2]), shares.held_by(keeps)), (3, 0, 0));
        shares.give(seats[1], 3);
        seats[1..].iter().for_each(|seat| shares.leave(*seat));
    }
    assert_eq!((shares.members.len(), shares.members.rows()), (1, 3));
}

#[test]
fn peers_and_addresses_that_differ_in_anything_are_different_parties() {
    let (one, state) = (at(1), std::collections::hash_map::RandomState::new());
    let hash = |party: Party| std::hash::BuildHasher::hash_one(&state, party);
    let copy = Party { peer: one.peer.to_string().parse().unwrap(), ..one };
    assert_eq!((one, hash(one)), (copy, hash(copy)));
    for other in [beside(one), Party { peer: one.peer, ..at(2) }, Party::unplaced(one.peer)] {
        assert!(other != one && hash(other) != hash(one), "{other:?}");
    }
}
