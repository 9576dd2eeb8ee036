//! Training over slow links, beside what the links' bandwidth allows.
//!
//! Every host (the client and each server) has an access link of its own; see `petals_e2e::Link`. The bound is the time
//! that the bytes of a step take on the lane that has most of them: nothing that keeps the protocol can be faster.

use std::time::Duration;

use anyhow::Context;
use petals_e2e::{Link, LinkConfig, RandomModel, WideAreaSwarm};

use crate::{Model, number, result};

/// Little computation for many bytes: FLOPs of a block grow with the square of the width, bytes with the width.
const MODEL: RandomModel = RandomModel { hidden: 256, intermediate: 256, blocks: 3, heads: 4, vocab: 1024 };

/// One option with its values, comma-separated; every combination is measured.
struct Options<'a>(&'a [&'a str]);

impl<'a> Options<'a> {
    fn values(&self, name: &str, default: &'a str) -> anyhow::Result<Vec<&'a str>> {
        let at = self.0.iter().position(|argument| *argument == name);
        let text = match at {
            Some(at) => self.0.get(at + 1).copied().with_context(|| format!("{name} lacks its value"))?,
            None => default,
        };
        Ok(text.split(',').collect())
    }

    fn value<T: std::str::FromStr>(&self, name: &str, default: &'a str) -> anyhow::Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let text = self.values(name, default)?;
        text.first().copied().unwrap_or_default().parse().with_context(|| format!("{name} {text:?}"))
    }
}

/// What is measured on one swarm.
struct Case<'a> {
    relay: &'a str,
    wire: &'a str,
    task: &'a str,
}

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let known =
        ["--servers", "--round-trip", "--mbit", "--relay", "--wire", "--task", "--batch", "--in-flight", "--repeat"];
    for option in options.iter().step_by(2) {
        anyhow::ensure!(known.contains(option), "unknown option {option}: one of {}", known.join(", "));
    }
    let options = Options(options);
    let mbit: f64 = options.value("--mbit", "100")?;
    let batch: usize = options.value("--batch", "192")?;
    let in_flight: usize = options.value("--in-flight", "12")?;
    let repeat: usize = options.value("--repeat", "3")?;
    let model = Model::random(MODEL)?;
    println!(
        "## training over access links of {mbit} Mbit/s each way: hidden {}, {} blocks, MLP {}; {batch} x 128 tokens, deep replace, prefix 16\n",
        MODEL.hidden, MODEL.blocks, MODEL.intermediate
    );
    println!(
        "| round trip | servers | relay | task | wire | tokens/s | step s | bound s (bandwidth) | of the bound | MB a step on the busiest lane | compute s (busiest server) |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for round_trip in options.values("--round-trip", "10,100")? {
        for servers in options.values("--servers", "2,3")? {
            let delay = Duration::from_millis(round_trip.parse().context("--round-trip is in milliseconds")?);
            let access = LinkConfig::between_hosts(delay, mbit * 1e6);
            let spans = model.spans(servers.parse().context("--servers")?)?;
            let spans: Vec<&str> = spans.iter().map(String::as_str).collect();
            let swarm = WideAreaSwarm::start(model.directory(), &spans, access, &[])?;
            for relay in options.values("--relay", "star")? {
                for task in options.values("--task", "seq-cls,causal-lm")? {
                    for wire in options.values("--wire", "f32,bf16")? {
                        let case = Case { relay, wire, task };
                        print!("| {round_trip} ms | {servers} ");
                        case.measure(&swarm, &model, mbit * 1e6, [batch, in_flight, repeat])?;
                    }
                }
            }
        }
    }
    Ok(())
}

impl Case<'_> {
    fn measure(
        &self,
        swarm: &WideAreaSwarm,
        model: &Model,
        bits_per_s: f64,
        [batch, in_flight, repeat]: [usize; 3],
    ) -> anyhow::Result<()> {
        let Self { relay, wire, task } = self;
        let mut tune = swarm.tune("bench", model.directory())?.args(&["train", "--task", task, "--wire-dtype", wire]);
        if *relay != "chain" {
            tune = tune.args(&["--relay", relay]);
        }
        let numbers = [("--batch", batch), ("--in-flight", in_flight), ("--repeat", repeat), ("--warmup", 1)];
        for (name, value) in numbers {
            tune = tune.args(&[name, &value.to_string()]);
        }
        let before = lanes(swarm);
        let event = result(tune)?;
        let steps = (repeat + 1) as f64;
        let busiest = lanes(swarm).iter().zip(&before).map(|(after, before)| after - before).max().unwrap_or(0);
        let bytes = busiest as f64 / steps;
        let bound = 8.0 * bytes / bits_per_s;
        let step = number(&event, "median_ms")? / 1e3;
        let servers = event["servers"].as_array().into_iter().flatten();
        let compute = servers.filter_map(|server| server["computed_ms"].as_f64()).fold(0.0, f64::max) / 1e3;
        println!(
            "| {relay} | {task} | {wire} | {:.0} | {step:.2} | {bound:.2} | {:.0} % | {:.1} | {compute:.2} |",
            number(&event, "tokens_per_s")?,
            100.0 * bound / step,
            bytes / 1e6,
        );
        Ok(())
    }
}

/// Bytes that have passed each lane.
fn lanes(swarm: &WideAreaSwarm) -> Vec<u64> {
    let links = swarm.relays.iter().map(|relay| relay.link()).chain([&swarm.client]);
    links.flat_map(|link: &std::sync::Arc<Link>| [link.up.bytes(), link.down.bytes()]).collect()
}
