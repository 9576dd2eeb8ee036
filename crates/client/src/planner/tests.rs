use proptest::prelude::*;

use super::*;

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

fn candidate(start: u32, end: u32) -> Candidate {
    Candidate { latency_seconds: 0.005, ..Candidate::new(PeerId::random(), span(start, end), 0.1) }
}

fn parts(route: &Route) -> Vec<(u32, u32)> {
    route.hops.iter().map(|hop| hop.span.into()).collect()
}

fn fastest(blocks: Span, candidates: &[Candidate]) -> Result<Route, MissingBlocks> {
    Planner::new(candidates, &RouteRules::default(), blocks).fastest(blocks)
}

#[test]
fn one_server_with_everything_beats_a_chain_of_equals() {
    let route = fastest(span(0, 4), &[candidate(0, 2), candidate(2, 4), candidate(0, 4)]).unwrap();
    assert_eq!(parts(&route), [(0, 4)]);
    assert!((route.seconds - 0.41).abs() < 1e-9);
}

#[test]
fn a_fast_server_takes_over_in_the_middle_of_anothers_span() {
    let fast = Candidate { block_seconds: 0.01, ..candidate(1, 3) };
    let route = fastest(span(0, 4), &[candidate(0, 4), fast.clone()]).unwrap();
    assert_eq!(parts(&route), [(0, 1), (1, 3), (3, 4)]);
    assert_eq!(route.hops[1].peer, fast.peer);
}

#[test]
fn a_banned_server_is_used_only_for_what_nobody_else_holds() {
    let banned = Candidate { banned: true, block_seconds: 1e-6, ..candidate(0, 4) };
    let route = fastest(span(0, 4), &[banned.clone(), candidate(0, 3)]).unwrap();
    assert_eq!(parts(&route), [(0, 3), (3, 4)]);
    assert_eq!(route.hops[1].peer, banned.peer);
}

#[test]
fn blocks_without_a_holder_are_named() {
    let error = fastest(span(0, 10), &[candidate(2, 4), candidate(5, 9)]).unwrap_err();
    assert_eq!(error.to_string(), "no server holds blocks 0..2, 4, 9");
    assert_eq!(fastest(span(3, 4), &[]).unwrap_err().to_string(), "no server holds block 3");
}

#[test]
fn a_part_of_the_model_can_be_planned() {
    let candidates = [candidate(0, 5), candidate(4, 12)];
    let rules = RouteRules { trusted: [PeerId::random()].into(), ..RouteRules::default() };
    let route = Planner::new(&candidates, &rules, span(0, 12)).fastest(span(3, 7)).unwrap();
    assert_eq!(route.hops.first().unwrap().span.start(), 3);
    assert_eq!(route.hops.last().unwrap().span.end(), 7);
}

#[test]
fn servers_that_are_near_each_other_follow_each_other() {
    let far = |start, end| Candidate { latency_seconds: 0.1, ..candidate(start, end) };
    let (first, mut near, other) = (far(0, 2), far(2, 4), candidate(2, 4));
    let route = fastest(span(0, 4), &[first.clone(), near.clone(), other.clone()]).unwrap();
    assert_eq!(route.hops[1].peer, other.peer, "without a word of each other the ways lead through the client");
    let first = Candidate { next: [(near.peer, 0.001)].into(), ..first };
    near.latency_seconds = 0.08;
    let route = fastest(span(0, 4), &[first.clone(), near.clone(), other]).unwrap();
    assert_eq!(route.hops[1].peer, near.peer);
    assert!((route.seconds - (0.1 + 0.4 + 0.001 + 0.08)).abs() < 1e-9, "{}", route.seconds);
}

#[test]
fn rules_that_cannot_be_kept_are_named_with_whom_they_exclude_from_what() {
    let (one, two, three) = (candidate(0, 2), candidate(1, 4), candidate(0, 4));
    let candidates = [one.clone(), two.clone(), three.clone()];
    let rules = RouteRules {
        block: [two.peer].into(),
        pins: vec![(span(0, 1), two.peer)],
        trusted: [one.peer].into(),
        ..RouteRules::default()
    };
    let error = Planner::new(&candidates, &rules, span(0, 4)).fastest(span(0, 4)).unwrap_err();
    assert_eq!(error.spans, [span(0, 1), span(3, 4)]);
    let excluded = |peer, start, end, why| Excluded { peer, span: span(start, end), why };
    assert_eq!(
        error.excluded,
        [
            excluded(one.peer, 0, 1, Exclusion::Pinned(two.peer)),
            excluded(three.peer, 0, 1, Exclusion::Pinned(two.peer)),
            excluded(two.peer, 3, 4, Exclusion::Blocked),
            excluded(three.peer, 3, 4, Exclusion::NotTrusted),
        ]
    );
    let text = error.to_string();
    assert!(text.starts_with("no server may run blocks 0, 3: "), "{text}");
    assert!(text.contains(&format!("{} holds 3 but in --block", two.peer)), "{text}");
}

#[test]
fn a_trusted_server_takes_the_ends_and_a_pinned_one_its_blocks() {
    let (friend, pinned, quick) =
        (candidate(0, 6), candidate(2, 4), Candidate { block_seconds: 0.001, ..candidate(0, 6) });
    let candidates = [friend.clone(), pinned.clone(), quick.clone()];
    let rules =
        RouteRules { trusted: [friend.peer].into(), pins: vec![(span(2, 4), pinned.peer)], ..RouteRules::default() };
    let route = Planner::new(&candidates, &rules, span(0, 6)).fastest(span(0, 6)).unwrap();
    let by: Vec<PeerId> = route.hops.iter().map(|hop| hop.peer).collect();
    assert_eq!(by, [friend.peer, quick.peer, pinned.peer, quick.peer, friend.peer]);
    assert_eq!(parts(&route), [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]);
}

#[test]
fn equal_servers_share_the_micro_batches_equally_and_a_slow_one_gets_less() {
    let rules = RouteRules::default();
    let equal = [candidate(0, 4), candidate(0, 4)];
    let routes = Planner::new(&equal, &rules, span(0, 4)).parallel(span(0, 4), 8, 4).unwrap();
    assert_eq!(routes.iter().map(|r| r.share).collect::<Vec<_>>(), [0.5, 0.5]);
    // Far away, so that one route over both would take longer.
    let far = || Candidate { latency_seconds: 0.5, ..candidate(0, 4) };
    let slow = [far(), Candidate { block_seconds: 0.3, ..far() }];
    let routes = Planner::new(&slow, &rules, span(0, 4)).parallel(span(0, 4), 8, 4).unwrap();
    assert_eq!(routes[0].route.hops[0].peer, slow[0].peer);
    assert!((routes[0].share - 0.75).abs() < 1e-6, "{routes:?}");
}

#[test]
fn many_micro_batches_are_spread_over_more_hops_than_one() {
    let rules = RouteRules::default();
    let candidates = [candidate(0, 8), candidate(4, 8)];
    let planner = Planner::new(&candidates, &rules, span(0, 8));
    assert_eq!(parts(&planner.fastest(span(0, 8)).unwrap()), [(0, 8)], "one batch pays the way to each server");
    let routes = planner.parallel(span(0, 8), 16, 4).unwrap();
    assert_eq!(parts(&routes[0].route), [(0, 4), (4, 8)]);
    assert!((routes[0].stage_seconds - 0.4).abs() < 1e-9);
}

#[test]
fn a_server_that_others_use_counts_as_slower() {
    let busy = Candidate { load: 3.0, ..candidate(0, 4) };
    let candidates = [busy.clone(), candidate(0, 4)];
    let routes = Planner::new(&candidates, &RouteRules::default(), span(0, 4)).parallel(span(0, 4), 8, 1).unwrap();
    assert_eq!(routes[0].route.hops[0].peer, candidates[1].peer);
}

#[test]
fn a_second_route_through_the_bottleneck_is_no_use() {
    let (narrow, wide) = (candidate(0, 2), [candidate(2, 4), candidate(2, 4)]);
    let candidates = [narrow, wide[0].clone(), wide[1].clone()];
    let routes = Planner::new(&candidates, &RouteRules::default(), span(0, 4)).parallel(span(0, 4), 8, 4).unwrap();
    assert_eq!(routes.len(), 1);
}

const BLOCKS: u32 = 5;

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let numbers = (1u32..100, 0u32..100, 0u32..50, 0u32..50, 0u32..4);
    let one = (0..BLOCKS, 1u32..6, numbers, any::<bool>()).prop_map(|(start, len, numbers, banned)| {
        let (block, queue, latency, transfer, load) = numbers;
        let [block_seconds, queue_seconds, latency_seconds, transfer_seconds] =
            [block, queue, latency, transfer].map(|hundredths| f64::from(hundredths) / 100.0);
        let load = f64::from(load);
        let numbers = Candidate {
            queue_seconds,
            latency_seconds,
            transfer_seconds,
            load,
            banned,
            ..candidate(start, start + len)
        };
        Candidate { block_seconds, ..numbers }
    });
    // Who tells whom how far it is, as bits.
    (proptest::collection::vec(one, 0..5), any::<u32>()).prop_map(|(mut candidates, told)| {
        let peers: Vec<PeerId> = candidates.iter().map(|c| c.peer).collect();
        for (at, candidate) in candidates.iter_mut().enumerate() {
            let tells = |other: &usize| *other != at && told >> (5 * at + other) & 1 == 1;
            candidate.next =
                (0..peers.len()).filter(tells).map(|other| (peers[other], 0.02 * (other + at) as f64)).collect();
        }
        candidates
    })
}

/// Rules by the places of the candidates they name; 9 stands for nobody.
fn rules(candidates: &[Candidate], (allow, block, pin, trust): (usize, usize, usize, usize)) -> RouteRules {
    let peer = |at: usize| candidates.get(at).map(|c| c.peer);
    let mut rules = RouteRules::default();
    rules.block.extend(peer(block));
    rules.trusted.extend(peer(trust));
    rules.pins.extend(peer(pin).map(|peer| (span(1, 3), peer)));
    if allow < candidates.len() {
        rules.allow.extend(candidates.iter().skip(1).map(|c| c.peer));
    }
    rules
}

/// Everybody who may run a block, as documented: by the rules, and banned ones only where nobody else may.
fn may_run(planner: &Planner, block: u32) -> Vec<PeerId> {
    let holders = || planner.candidates.iter().filter(|c| c.span.contains(block));
    let legal: Vec<&Candidate> =
        holders().filter(|c| planner.rules.exclusion(c.peer, block, planner.model).is_none()).collect();
    let good: Vec<PeerId> = legal.iter().filter(|c| !c.banned).map(|c| c.peer).collect();
    if good.is_empty() { legal.iter().map(|c| c.peer).collect() } else { good }
}

/// The cheapest way by brute force: every choice of a server for every block.
fn cheapest(planner: &Planner, blocks: Span) -> Option<f64> {
    let mut choices: Vec<Vec<Hop>> = vec![Vec::new()];
    for block in blocks.blocks() {
        let runners = may_run(planner, block);
        choices = choices
            .iter()
            .flat_map(|hops| {
                runners.iter().map(|&peer| {
                    let mut hops = hops.clone();
                    match hops.last_mut().filter(|last| last.peer == peer) {
                        Some(last) => last.span = span(last.span.start(), block + 1),
                        None => hops.push(Hop { peer, span: span(block, block + 1) }),
                    }
                    hops
                })
            })
            .collect();
    }
    choices.iter().filter_map(|hops| planner.seconds(hops)).min_by(f64::total_cmp)
}

fn assert_legal(planner: &Planner, blocks: Span, route: &Route) -> Result<(), TestCaseError> {
    let mut at = blocks.start();
    for hop in &route.hops {
        prop_assert_eq!(hop.span.start(), at);
        at = hop.span.end();
        for block in hop.span.blocks() {
            prop_assert!(may_run(planner, block).contains(&hop.peer), "block {} by {}", block, hop.peer);
        }
    }
    prop_assert_eq!(at, blocks.end());
    prop_assert!(route.hops.windows(2).all(|pair| pair[0].peer != pair[1].peer));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_fastest_route_is_legal_and_the_cheapest_of_all(
        candidates in candidates(),
        named in (0usize..10, 0usize..10, 0usize..10, 0usize..10),
    ) {
        let (blocks, rules) = (span(0, BLOCKS), rules(&candidates, named));
        let planner = Planner::new(&candidates, &rules, blocks);
        match planner.fastest(blocks) {
            Ok(route) => {
                assert_legal(&planner, blocks, &route)?;
                let best = cheapest(&planner, blocks).unwrap();
                prop_assert!((route.seconds - best).abs() <= 1e-9 * best.max(1.0), "{} {}", route.seconds, best);
                let counted = planner.seconds(&route.hops).unwrap();
                prop_assert!((route.seconds - counted).abs() <= 1e-9 * counted.max(1.0));
            }
            Err(missing) => {
                prop_assert!(cheapest(&planner, blocks).is_none());
                let lost: Vec<u32> = missing.spans.iter().flat_map(|lost| lost.blocks()).collect();
                let nobody: Vec<u32> = blocks.blocks().filter(|&block| may_run(&planner, block).is_empty()).collect();
                prop_assert_eq!(&lost, &nobody);
                for block in lost {
                    let holders = candidates.iter().filter(|c| c.span.contains(block)).count();
                    let named = missing.excluded.iter().filter(|e| e.span.contains(block)).count();
                    prop_assert_eq!(holders, named, "every holder of a missing block is accounted for");
                }
            }
        }
    }

    #[test]
    fn parallel_routes_are_legal_and_share_servers_only_where_nobody_else_is_left(
        candidates in candidates(),
        named in (0usize..10, 0usize..10, 0usize..10, 0usize..10),
        depth in 1usize..20,
    ) {
        let (blocks, rules) = (span(0, BLOCKS), rules(&candidates, named));
        let planner = Planner::new(&candidates, &rules, blocks);
        let Ok(routes) = planner.parallel(blocks, depth, 4) else {
            prop_assert!(planner.fastest(blocks).is_err());
            return Ok(());
        };
        prop_assert!(!routes.is_empty() && routes.len() <= 4);
        prop_assert!((routes.iter().map(|r| r.share).sum::<f64>() - 1.0).abs() < 1e-9);
        for (number, WeightedRoute { route, share, .. }) in routes.iter().enumerate() {
            assert_legal(&planner, blocks, route)?;
            prop_assert!(*share > 0.0);
            for (other, shared) in routes.iter().enumerate().flat_map(|(n, r)| r.route.hops.iter().map(move |h| (n, h))) {
                if other == number || !route.hops.iter().any(|hop| hop.peer == shared.peer) {
                    continue;
                }
                // Of two routes one came later. It took a used server only for blocks all of whose holders were used.
                let used = |block: u32| {
                    let in_use = |peer: &PeerId| routes.iter().any(|r| r.route.hops.iter().any(|hop| hop.peer == *peer));
                    may_run(&planner, block).iter().all(in_use)
                };
                let of = |r: &Route| r.hops.iter().filter(|h| h.peer == shared.peer).any(|h| h.span.blocks().all(used));
                prop_assert!(of(route) || of(&routes[other].route));
            }
        }
        // No worse than sending everything the fastest way.
        let alone = planner.fastest(blocks).unwrap();
        let whole = |r: &Route| r.seconds + (depth - 1) as f64 * planner.slowest(r);
        if routes.len() == 1 {
            prop_assert!(whole(&routes[0].route) <= whole(&alone) * (1.0 + 1e-9));
        }
    }

    #[test]
    fn bans_never_remove_the_last_holder(candidates in candidates()) {
        let (blocks, rules) = (span(0, BLOCKS), RouteRules::default());
        let free: Vec<Candidate> = candidates.iter().map(|c| Candidate { banned: false, ..c.clone() }).collect();
        let with_bans = Planner::new(&candidates, &rules, blocks).fastest(blocks);
        prop_assert_eq!(with_bans.is_ok(), Planner::new(&free, &rules, blocks).fastest(blocks).is_ok());
    }
}
