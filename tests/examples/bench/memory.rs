//! The servers' resident memory over a long run.

use anyhow::Context;
use petals_e2e::ProcessSwarm;

use crate::{Model, mib};

const STEPS: u64 = 500;
/// Steps between two lines.
const EVERY: u64 = 50;
/// Given to each server for stashes. What requests and passes take follows from the work.
const STASH_BYTES: &str = "64M";

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let name = options.first().copied().unwrap_or("tiny");
    let steps: u64 = options.get(1).map_or(Ok(STEPS), |steps| steps.parse()).context("how many steps?")?;
    let model = Model::named(name)?;
    let mut swarm = ProcessSwarm::start(model.directory(), &[])?;
    for span in model.spans(2)? {
        let mut server = swarm.spawn_server(&["--blocks", &span, "--stash-bytes", STASH_BYTES])?;
        server.ready = server.event("ready")?;
        swarm.servers.push(server);
    }
    println!(
        "## resident MiB of two servers over {steps} steps, model `{name}`, causal-lm, 4 x 128 tokens, stash {STASH_BYTES}\n"
    );
    println!(
        "| step | {} |\n|---|---|---|",
        swarm
            .servers
            .iter()
            .map(|s| format!("blocks {}", s.ready["blocks"]))
            .collect::<Vec<_>>()
            .join(" | ")
            .replace('"', "")
    );
    let resident = |swarm: &ProcessSwarm| {
        swarm.servers.iter().map(|server| server.resident_bytes()).collect::<anyhow::Result<Vec<u64>>>()
    };
    let line = |step: &str, values: &[f64]| {
        let values: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
        println!("| {step} | {} |", values.join(" | "));
    };
    let in_mib = |bytes: &[u64]| bytes.iter().map(|&bytes| mib(bytes)).collect::<Vec<_>>();
    line("0", &in_mib(&resident(&swarm)?));
    let arguments = ["train", "--repeat", &steps.to_string(), "--warmup", "0"];
    let mut seen = Vec::new();
    let mut failure = None;
    let (_, finished) = swarm.tune("bench")?.args(&arguments).watch(|event| {
        let step = event["number"].as_u64().unwrap_or(0);
        if event["event"] == "bench_repetition" && step.is_multiple_of(EVERY) {
            match resident(&swarm) {
                Ok(bytes) => {
                    line(&step.to_string(), &in_mib(&bytes));
                    seen.push(bytes);
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.is_none()
    })?;
    failure.map_or(Ok(()), Err)?;
    anyhow::ensure!(finished, "the run failed");
    let weights: Vec<u64> = swarm.servers.iter().map(|server| server.weight_bytes()).collect::<anyhow::Result<_>>()?;
    line("weights", &in_mib(&weights));
    line("weights + 15 %", &in_mib(&weights).iter().map(|mib| 1.15 * mib).collect::<Vec<_>>());
    if let [first, .., last] = seen.as_slice() {
        let growth: Vec<f64> = last.iter().zip(first).map(|(&last, &first)| mib(last) - mib(first)).collect();
        line(&format!("growth after step {EVERY}"), &growth);
    }
    Ok(())
}
