use petals_protocol::{Fingerprint, ModelId};

use super::*;
use crate::placement::sim;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn server(start: u32, end: u32, state: ServerState, rate: f32) -> ServerInfo {
    let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
    ServerInfo { forward_tokens_per_s: Some(rate), ..ServerInfo::new(model, span(start, end), state) }
}

fn online(start: u32, end: u32, rate: f32) -> ServerInfo {
    server(start, end, ServerState::Online, rate)
}

fn moving(start: u32, end: u32, to: (u32, u32)) -> ServerInfo {
    ServerInfo { moving_to: Some(span(to.0, to.1)), ..online(start, end, 10.0) }
}

/// Claims of servers that are what they say, each in a network of its own.
fn claims(servers: &[ServerInfo]) -> Vec<Claim> {
    servers.iter().filter_map(|info| Claim::of(info, None)).collect()
}

fn chosen(count: u32, servers: &[ServerInfo]) -> (u32, u32) {
    Coverage::of(8, None, &claims(servers)).worst_window(count).unwrap().into()
}

/// Where one at `here` with a rate of 10 goes in a model of 8 blocks.
fn better(here: (u32, u32), others: &[ServerInfo]) -> Option<(u32, u32)> {
    Coverage::of(8, Some(10.0), &claims(others)).better(span(here.0, here.1), 10.0).map(Into::into)
}

#[test]
fn an_empty_swarm_is_begun_at_block_zero() {
    assert_eq!(chosen(3, &[]), (0, 3));
    assert_eq!(chosen(99, &[]), (0, 8));
}

#[test]
fn holes_come_first_then_slow_blocks() {
    assert_eq!(chosen(4, &[online(0, 4, 10.0)]), (4, 8));
    assert_eq!(chosen(2, &[online(0, 3, 10.0), online(4, 8, 10.0)]), (2, 4));
    assert_eq!(chosen(4, &[online(0, 4, 10.0), online(4, 8, 2.0)]), (4, 8));
}

#[test]
fn joining_and_moving_servers_count_where_they_go_and_leaving_ones_do_not() {
    let states = [server(0, 4, ServerState::Joining, 5.0), server(4, 8, ServerState::Draining, 5.0)];
    assert_eq!(chosen(4, &states), (4, 8));
    assert_eq!(chosen(4, &[online(0, 4, 10.0), moving(0, 4, (4, 8)), online(0, 4, 1.0)]), (4, 8));
    assert_eq!(chosen(4, &[online(0, 4, 9.0), moving(0, 4, (4, 8))]), (0, 4));
    let loading = ServerInfo { forward_tokens_per_s: None, ..server(4, 8, ServerState::Joining, 0.0) };
    assert_eq!(chosen(4, &[online(0, 4, 10.0), loading.clone(), online(4, 8, 1.0)]), (4, 8), "5.5 and 1");
    assert_eq!(chosen(4, &[online(0, 4, 10.0), loading]), (0, 4), "as fast as the other one");
    let drained = ServerInfo { state: ServerState::Draining, ..moving(0, 4, (4, 8)) };
    assert_eq!(chosen(4, &[drained]), (0, 4));
}

#[test]
fn a_record_that_claims_more_blocks_than_there_are_does_no_harm() {
    let boaster = online(6, 4_000_000_000, 1.0);
    assert_eq!(chosen(4, std::slice::from_ref(&boaster)), (0, 4));
    let astray = ServerInfo { moving_to: Some(span(100, 200)), ..boaster };
    assert_eq!(better((0, 4), &[online(0, 8, 10.0), astray]), None);
}

#[test]
fn a_hole_is_filled_by_one_who_is_not_alone() {
    assert_eq!(better((0, 4), &[online(0, 4, 10.0)]), Some((4, 8)));
    assert_eq!(better((0, 4), &[online(1, 4, 10.0)]), None, "block 0 would be the next hole");
    assert_eq!(better((0, 4), &[online(0, 3, 10.0)]), Some((3, 7)), "block 3 stays served");
    assert_eq!(better((0, 4), &[]), None);
    // A part of the span stays: only what is left must be held by others.
    assert_eq!(better((0, 4), &[online(0, 2, 10.0), online(6, 8, 10.0)]), Some((2, 6)));
}

#[test]
fn nobody_counts_on_one_that_is_joining_or_about_to_leave() {
    assert_eq!(better((0, 4), &[server(0, 4, ServerState::Joining, 10.0)]), None);
    assert_eq!(better((0, 4), &[moving(0, 4, (2, 6)), online(5, 8, 1.0)]), None);
    // Somebody goes already.
    assert_eq!(better((0, 4), &[online(0, 4, 10.0), moving(0, 4, (4, 8))]), None);
}

#[test]
fn a_move_must_be_worth_it() {
    let half = |here: usize, there: usize| {
        let here = (0..here).map(|_| online(0, 4, 10.0));
        here.chain((0..there).map(|_| online(4, 8, 10.0))).collect::<Vec<_>>()
    };
    assert_eq!(better((0, 4), &half(1, 1)), None, "2 and 1 would become 1 and 2");
    assert_eq!(better((0, 4), &half(2, 1)), Some((4, 8)), "3 and 1 become 2 and 2");
    assert_eq!(better((0, 4), &half(2, 2)), None);
    // One of many moves as well, although one alone makes little difference.
    assert_eq!(better((0, 4), &half(100, 60)), Some((4, 8)));
    assert_eq!(better((0, 4), &half(100, 90)), None, "within the margin");
    assert_eq!(better((0, 4), &[online(0, 4, 10.0), online(4, 8, 9.0)]), None);
}

#[test]
fn what_was_added_can_be_taken_away() {
    let mut coverage = Coverage::of(8, None, &claims(&[online(0, 8, 3.0)]));
    coverage.add(span(2, 9), 0.1, true);
    assert!(coverage.is_held(span(0, 8), span(0, 1), 1));
    coverage.remove(span(0, 8), 3.0, true);
    assert_eq!(coverage.bottleneck(), 0.0);
    assert!(coverage.is_held(span(2, 8), span(0, 1), 1) && !coverage.is_held(span(0, 8), span(1, 2), 1));
    coverage.remove(span(2, 9), 0.1, true);
    assert_eq!((coverage.throughput, coverage.holders), (vec![0.0; 8], vec![0; 8]));
}

#[test]
fn a_simulated_swarm_covers_itself_moves_seldom_and_comes_to_rest() {
    let scenario = sim::Scenario {
        blocks: 40,
        servers: 120,
        arrival: 1200.0,
        churn: 3600.0,
        lifetime: 2.0 * 3600.0,
        calm: 3600.0,
        period: 300.0,
        age: 60.0,
        noise: 0.1,
        liars: 0,
        seed: 7,
    };
    let moving = sim::play(scenario);
    assert!(moving.first_cover < 600.0, "{moving:?}");
    assert_eq!(moving.settling.uncovered + moving.calm.uncovered, 0.0, "{moving:?}");
    assert!(moving.calm.moves < 0.05, "it does not come to rest: {moving:?}");
    assert!(moving.churn.taken_back < 2.0 && moving.churn.moves < 2.0, "it is never at rest: {moving:?}");
    assert!(moving.calm.worst_quality > 0.6, "{moving:?}");
    let staying = sim::play(sim::Scenario { period: 0.0, ..scenario });
    assert_eq!(staying.churn.moves, 0.0);
    assert!(moving.churn.mean_quality > staying.churn.mean_quality, "{moving:?} beside {staying:?}");
}

/// A record that nothing is behind.
fn lie(start: u32, end: u32, rate: f64) -> Claim {
    Claim { holds: false, ..Claim { span: span(start, end), rate: Some(rate), holds: true, network: None } }
}

#[test]
fn who_was_not_found_to_hold_a_block_lets_nobody_leave_it() {
    let leaves = |claims: &[Claim]| Coverage::of(8, Some(10.0), claims).better(span(0, 4), 10.0);
    assert_eq!(leaves(&[lie(0, 4, 10.0), lie(0, 4, 1e30)]), None);
    assert_eq!(leaves(&[Claim { holds: true, ..lie(0, 4, 10.0) }]), Some(span(4, 8)), "a hole");
    // For balance alone two must be there.
    let there = lie(4, 8, 1.0);
    let held = Claim { holds: true, ..lie(0, 4, 10.0) };
    assert_eq!(leaves(&[held, lie(0, 4, 10.0), there]), None);
    assert_eq!(leaves(&[held, held, there]), Some(span(4, 8)));
    // And two ids of one network are one.
    let near = Claim { network: Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0))), ..held };
    assert_eq!(leaves(&[near, near, there]), None);
    assert_eq!(leaves(&[near, held, there]), Some(span(4, 8)));
}

#[test]
fn nobody_counts_more_than_some_times_what_is_usual() {
    for absurd in [f32::MAX, f32::INFINITY, f32::NAN] {
        let absurd = online(4, 8, absurd);
        let both = [online(0, 4, 10.0), online(0, 4, 10.0), absurd.clone()];
        assert!(Coverage::of(8, Some(10.0), &claims(&both)).throughput.iter().all(|rate| *rate <= 40.0), "{absurd:?}");
        // Six honest servers of the first half: the liar counts like four of them at most.
        let many: Vec<ServerInfo> = (0..6).map(|_| online(0, 4, 10.0)).chain([absurd]).collect();
        assert_eq!(better((0, 4), &many), Some((4, 8)), "everybody is frozen");
        assert_eq!(chosen(4, &many), (4, 8), "newcomers stay away");
    }
}

#[test]
fn a_network_counts_as_one_server_however_many_ids_it_has() {
    let network = Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)));
    let mut all: Vec<Claim> = (0..200).map(|_| Claim { network, ..lie(4, 8, f64::from(f32::MAX)) }).collect();
    all.extend((0..6).map(|_| Claim { holds: true, ..lie(0, 4, 10.0) }));
    let coverage = Coverage::of(8, Some(10.0), &all);
    assert_eq!(coverage.worst_window(4), Some(span(4, 8)));
    assert_eq!(coverage.better(span(0, 4), 10.0), Some(span(4, 8)));
    let of = |ip: &str| neighbourhood(ip.parse().unwrap()).to_string();
    assert_eq!((of("203.0.113.7"), of("192.168.1.7")), ("203.0.113.0".into(), "192.168.1.7".into()));
    assert_eq!(of("2001:db8::"), "2001:db8::");
}

#[test]
fn a_simulated_swarm_among_liars_covers_itself_and_comes_to_rest() {
    let calm = sim::Scenario {
        blocks: 40,
        servers: 120,
        arrival: 1200.0,
        churn: 3600.0,
        lifetime: 2.0 * 3600.0,
        calm: 3600.0,
        period: 300.0,
        age: 60.0,
        noise: 0.1,
        liars: 0,
        seed: 7,
    };
    let honest = sim::play(calm);
    for liars in [1, 500] {
        let among = sim::play(sim::Scenario { liars, ..calm });
        assert!(among.first_cover < 600.0, "{among:?}");
        assert_eq!(among.settling.uncovered + among.calm.uncovered, 0.0, "{among:?}");
        assert!(among.churn.uncovered <= honest.churn.uncovered + 60.0, "{among:?} beside {honest:?}");
        assert!(among.calm.moves < 0.05 && among.churn.moves < 2.0, "it is never at rest: {among:?}");
        assert!(among.calm.worst_quality > 0.5, "{among:?}");
    }
}
