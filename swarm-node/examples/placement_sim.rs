//! Up to a thousand servers that place themselves, in simulated time: how well, how often they move, and whether they come to
//! rest.
//!
//! usage: cargo run --release --example placement_sim -- [SEED]

use petals_node::placement::{Claim, Coverage};

#[path = "../src/placement/sim.rs"]
mod sim;

use sim::{Phase, Scenario, play};

fn main() {
    let seed = std::env::args().nth(1).and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("Servers of 2 to 48 blocks and 200 to 20,000 block tokens/s; mean lifetime under churn 3 h, half of them");
    println!(
        "crash; records up to 60 s old, rates measured to 10 %; looks every 5 minutes. Throughput is that of the worst"
    );
    println!(
        "block beside the bound, all servers' speed over all blocks. Liars claim the first half, at 3e38 tokens/s, from one network."
    );
    println!();
    println!(
        "| servers | liars | blocks | moving | covered after | phase | hours | moves/server/h | taken back | mean | worst | uncovered |"
    );
    println!("|---:|---:|---:|---|---:|---|---:|---:|---:|---:|---:|---:|");
    let honest = [(1000, 32, 0), (1000, 80, 0), (1000, 126, 0), (60, 80, 0)];
    for (servers, blocks, liars) in honest.into_iter().chain([(1000, 80, 1000), (60, 80, 1), (60, 80, 1000)]) {
        for period in [300.0, 0.0] {
            let scenario = Scenario {
                blocks,
                servers,
                arrival: 1800.0,
                churn: 4.0 * 3600.0,
                lifetime: 3.0 * 3600.0,
                calm: 2.0 * 3600.0,
                period,
                age: 60.0,
                noise: 0.1,
                liars,
                seed,
            };
            let report = play(scenario);
            let line = |name: &str, hours: f64, phase: Phase| {
                let Phase { moves, taken_back, mean_quality, worst_quality, uncovered } = phase;
                let (mean, worst, first) = (100.0 * mean_quality, 100.0 * worst_quality, report.first_cover);
                let moving = if period > 0.0 { "yes" } else { "no" };
                println!(
                    "| {servers} | {liars} | {blocks} | {moving} | {first:.0} s | {name} | {hours:.1} | {moves:.3} | {taken_back:.3} | {mean:.0} % | {worst:.0} % | {uncovered:.0} s |"
                );
            };
            line("settling", scenario.arrival / 3600.0, report.settling);
            line("churn", scenario.churn / 3600.0, report.churn);
            line("calm, second half", scenario.calm / 7200.0, report.calm);
        }
    }
}
