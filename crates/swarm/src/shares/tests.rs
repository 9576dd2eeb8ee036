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
}
