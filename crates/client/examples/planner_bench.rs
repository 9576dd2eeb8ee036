//! Time of planning routes over many servers: `cargo run --release --example planner_bench [SERVERS] [BLOCKS]`.

use std::time::Instant;

use petals_client::{Candidate, PeerId, Planner, RouteRules, Span};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Plans of each kind; their median and slowest are printed.
const REPEAT: usize = 50;
/// Servers behind it whose distance a server knows.
const PINGS: usize = 32;

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let (servers, blocks) = (numbers.first().copied().unwrap_or(1000), numbers.get(1).copied().unwrap_or(126));
    let model = Span::new(0, blocks).expect("a model has blocks");
    println!("{servers} servers, {blocks} blocks, each server knows the way to up to {PINGS} others");
    println!("{:<44} {:>10} {:>12} {:>10}", "plan", "hops", "median ms", "most ms");
    for (spans, shortest, longest) in [("4 to 20 blocks each", 4, 20), ("everything on each", blocks, blocks)] {
        let candidates = candidates(servers as usize, model, shortest.min(blocks), longest.min(blocks));
        let rules = RouteRules::default();
        let trusted = RouteRules { trusted: candidates.iter().step_by(3).map(|c| c.peer).collect(), ..rules.clone() };
        let planner = || Planner::new(&candidates, &rules, model);
        let hops = |route: &petals_client::Route| route.hops.len().to_string();
        show(spans, "one pass", || planner().fastest(model).map_or_else(|e| e.to_string(), |r| hops(&r)));
        show(spans, "one pass, trusted ends", || {
            Planner::new(&candidates, &trusted, model).fastest(model).map_or_else(|e| e.to_string(), |r| hops(&r))
        });
        show(spans, "training, one route", || {
            planner().parallel(model, 8, 1).map_or_else(|e| e.to_string(), |r| hops(&r[0].route))
        });
        show(spans, "training, four routes", || {
            let of = |routes: Vec<petals_client::WeightedRoute>| {
                routes.iter().map(|r| hops(&r.route)).collect::<Vec<_>>().join("+")
            };
            planner().parallel(model, 8, 4).map_or_else(|e| e.to_string(), of)
        });
    }
}

fn show(spans: &str, what: &str, plan: impl Fn() -> String) {
    let mut times = Vec::with_capacity(REPEAT);
    let mut hops = String::new();
    for _ in 0..REPEAT {
        let started = Instant::now();
        hops = plan();
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("{:<44} {hops:>10} {:>12.2} {:>10.2}", format!("{spans}: {what}"), times[REPEAT / 2], times[REPEAT - 1]);
}

fn candidates(servers: usize, model: Span, shortest: u32, longest: u32) -> Vec<Candidate> {
    let mut random = StdRng::seed_from_u64(1);
    let mut candidates: Vec<Candidate> = (0..servers)
        .map(|_| {
            let length = random.random_range(shortest..=longest);
            let start = random.random_range(model.start()..=model.end() - length);
            let span = Span::new(start, start + length).expect("not empty");
            Candidate {
                queue_seconds: random.random_range(0.0..0.05),
                load: random.random_range(0.0..4.0),
                latency_seconds: random.random_range(0.001..0.1),
                transfer_seconds: random.random_range(0.001..0.1),
                ..Candidate::new(PeerId::random(), span, random.random_range(0.001..0.02))
            }
        })
        .collect();
    let places: Vec<(PeerId, Span)> = candidates.iter().map(|c| (c.peer, c.span)).collect();
    for candidate in &mut candidates {
        let near = places.choose_multiple(&mut random, PINGS).filter(|(peer, _)| *peer != candidate.peer);
        candidate.next = near.map(|(peer, _)| (*peer, 0.05)).collect();
        candidate.next.values_mut().for_each(|way| *way = random.random_range(0.001..0.2));
    }
    candidates
}
