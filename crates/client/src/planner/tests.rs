use proptest::prelude::*;

use super::*;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn candidate(start: u32, end: u32) -> Candidate {
    let peer = PeerId::random();
    Candidate { peer, span: span(start, end), block_seconds: 0.1, overhead_seconds: 0.01, banned: false }
}

fn parts(route: &Route) -> Vec<(u32, u32)> {
    route.hops.iter().map(|hop| hop.span.into()).collect()
}

#[test]
fn one_server_with_everything_beats_a_chain_of_equals() {
    let route = plan(span(0, 4), &[candidate(0, 2), candidate(2, 4), candidate(0, 4)]).unwrap();
    assert_eq!(parts(&route), [(0, 4)]);
    assert!((route.seconds - 0.41).abs() < 1e-9);
}

#[test]
fn a_fast_server_takes_over_in_the_middle_of_anothers_span() {
    let fast = Candidate { block_seconds: 0.01, ..candidate(1, 3) };
    let route = plan(span(0, 4), &[candidate(0, 4), fast.clone()]).unwrap();
    assert_eq!(parts(&route), [(0, 1), (1, 3), (3, 4)]);
    assert_eq!(route.hops[1].peer, fast.peer);
}

#[test]
fn a_banned_server_is_used_only_for_what_nobody_else_holds() {
    let banned = Candidate { banned: true, block_seconds: 1e-6, ..candidate(0, 4) };
    let route = plan(span(0, 4), &[banned.clone(), candidate(0, 3)]).unwrap();
    assert_eq!(parts(&route), [(0, 3), (3, 4)]);
    assert_eq!(route.hops[1].peer, banned.peer);
}

#[test]
fn blocks_without_a_holder_are_named() {
    let error = plan(span(0, 10), &[candidate(2, 4), candidate(5, 9)]).unwrap_err();
    assert_eq!(error.to_string(), "no server holds blocks 0..2, 4, 9");
    assert_eq!(plan(span(3, 4), &[]).unwrap_err().to_string(), "no server holds block 3");
}

#[test]
fn a_part_of_the_model_can_be_planned() {
    let route = plan(span(3, 7), &[candidate(0, 5), candidate(4, 12)]).unwrap();
    assert_eq!(route.hops.first().unwrap().span.start(), 3);
    assert_eq!(route.hops.last().unwrap().span.end(), 7);
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0u32..12, 1u32..8, 1u32..100, 0u32..100, any::<bool>()).prop_map(|(start, len, block, over, banned)| {
        let (block_seconds, overhead_seconds) = (f64::from(block) / 100.0, f64::from(over) / 100.0 + 0.001);
        Candidate { block_seconds, overhead_seconds, banned, ..candidate(start, start + len) }
    });
    proptest::collection::vec(one, 0..12)
}

/// All chains by brute force: from `at`, every server and every place to stop.
fn cheapest(at: u32, end: u32, candidates: &[Candidate]) -> Option<f64> {
    if at == end {
        return Some(0.0);
    }
    let mut best = None::<f64>;
    for c in candidates.iter().filter(|c| c.span.contains(at)) {
        for stop in at + 1..=c.span.end().min(end) {
            if let Some(rest) = cheapest(stop, end, candidates) {
                let factor = if c.banned { BAN_FACTOR } else { 1.0 };
                let cost = factor * (c.overhead_seconds + f64::from(stop - at) * c.block_seconds) + rest;
                best = Some(best.map_or(cost, |known| known.min(cost)));
            }
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_route_covers_every_block_once_by_a_holder_and_is_the_cheapest(candidates in candidates()) {
        let blocks = span(0, 6);
        match plan(blocks, &candidates) {
            Ok(route) => {
                let mut at = 0;
                for hop in &route.hops {
                    prop_assert_eq!(hop.span.start(), at);
                    at = hop.span.end();
                    let holder = candidates.iter().find(|c| c.peer == hop.peer).unwrap();
                    prop_assert!(holder.span.covers(hop.span));
                }
                prop_assert_eq!(at, 6);
                prop_assert!(route.hops.windows(2).all(|pair| pair[0].peer != pair[1].peer));
                let best = cheapest(0, 6, &candidates).unwrap();
                prop_assert!((route.seconds - best).abs() <= 1e-9 * best.max(1.0), "{} {}", route.seconds, best);
            }
            Err(missing) => {
                prop_assert!(cheapest(0, 6, &candidates).is_none());
                for lost in &missing.spans {
                    prop_assert!(candidates.iter().all(|c| c.span.intersect(*lost).is_none()));
                }
            }
        }
    }
}
