use std::net::Ipv4Addr;

use futures::FutureExt;
use petals_swarm::{Origin, PeerId};

use super::*;

const UNIT: u64 = 1 << 10;

fn at(number: u8) -> Party {
    Party { peer: PeerId::random(), origin: Origin::Ip4(Ipv4Addr::new(10, 0, 0, number)) }
}

fn beside(party: Party) -> Party {
    Party { peer: PeerId::random(), ..party }
}

fn now(budget: &Budget, party: Party, bytes: u64) -> Option<Reserved> {
    budget.of(party).reserve(bytes).now_or_never().flatten()
}

#[test]
fn a_party_gets_most_of_the_memory_and_leaves_the_rest_to_others() {
    let budget = Budget::new(16 * UNIT);
    let (one, other) = (at(1), at(2));
    let first = now(&budget, one, 8 * UNIT).unwrap();
    let stream = budget.of(one);
    assert!(stream.reserve(2 * UNIT).now_or_never().is_none(), "it has what it gets");
    assert_eq!(stream.try_reserve(2 * UNIT, UNIT).unwrap_err(), NoRoom::Now);
    assert_eq!(stream.try_reserve(2 * UNIT, 9 * UNIT).unwrap_err(), NoRoom::Ever);
    assert!(now(&budget, other, 4 * UNIT).is_some());
    drop(first);
    assert!(now(&budget, one, 8 * UNIT).is_some());
}

#[test]
fn ids_of_one_address_leave_memory_to_other_addresses() {
    let budget = Budget::new(1 << 20);
    let attacker = at(1);
    // The largest request of as many ids as it likes, some of which wait.
    let claims: Vec<_> = (0..64).map(|_| budget.of(beside(attacker))).collect();
    let mut held: Vec<_> = claims.iter().map(|claim| Box::pin(claim.reserve(1 << 17))).collect();
    let taken: Vec<Reserved> = held.iter_mut().filter_map(|claim| claim.now_or_never().flatten()).collect();
    assert!(taken.len() >= 4, "{}", taken.len());
    assert!(now(&budget, at(2), 1 << 17).is_some(), "{} are free", budget.free());
    assert!(now(&budget, beside(attacker), UNIT).is_some(), "an honest neighbour finds some room too");
}

#[test]
fn who_waits_gets_its_memory_when_it_is_given_back() {
    let budget = Budget::new(16 * UNIT);
    let (one, two) = (at(1), at(2));
    let first = now(&budget, one, 9 * UNIT).unwrap();
    let (mine, other) = (budget.of(one), budget.of(two));
    let mut wait = Box::pin(mine.reserve(4 * UNIT));
    assert!(wait.as_mut().now_or_never().is_none());
    let mut given_up = Box::pin(other.reserve(8 * UNIT));
    assert!(given_up.as_mut().now_or_never().is_none());
    drop(given_up);
    drop(first);
    let got = wait.now_or_never().flatten().unwrap();
    assert_eq!((got.bytes(), budget.free()), (4 * UNIT, 12 * UNIT));
    drop(got);
    assert_eq!(budget.free(), 16 * UNIT);
}

#[test]
fn what_is_reserved_can_be_given_back_in_part_and_taken_again() {
    let budget = Budget::new(16 * UNIT);
    let mut claim = now(&budget, at(1), 8 * UNIT).unwrap();
    claim.shrink_to(UNIT);
    assert_eq!(budget.free(), 15 * UNIT);
    claim.grow(2 * UNIT, 0).unwrap();
    assert_eq!((claim.bytes(), budget.free()), (3 * UNIT, 13 * UNIT));
    assert_eq!(claim.grow(8 * UNIT, 0), Err(NoRoom::Ever));
    assert_eq!(claim.bytes(), 3 * UNIT);
    drop(claim);
    assert_eq!(budget.free(), 16 * UNIT);
}

#[test]
fn a_budget_is_gone_with_whoever_used_it_even_if_somebody_waited_in_vain() {
    let budget = Budget::new(16 * UNIT);
    let (first, state) = (now(&budget, at(1), 9 * UNIT).unwrap(), Arc::downgrade(&budget.0));
    assert!(now(&budget, at(1), 9 * UNIT).is_none());
    let waiting = budget.of(at(2));
    let mut wait = Box::pin(waiting.reserve(9 * UNIT));
    assert!(wait.as_mut().now_or_never().is_none());
    drop(wait);
    drop((waiting, first, budget));
    assert_eq!(state.strong_count(), 0);
}

#[test]
fn whoever_has_an_access_and_holds_nothing_takes_nothing_from_others() {
    let budget = Budget::new(16 * UNIT);
    let idle: Vec<PartyBudget> = (2..100).map(|number| budget.of(at(number))).collect();
    assert!(now(&budget, at(1), 9 * UNIT).is_some());
    drop(idle);
    assert!(now(&budget, at(1), 9 * UNIT).is_some());
}
