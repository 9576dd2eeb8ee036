//! Two servers with half of the blocks each, over loopback.

use std::time::Instant;

use petals_e2e::ProcessSwarm;

use crate::{Model, mib, number, results};

const BATCH: usize = 4;
const LENGTH: usize = 128;
const PREFIX: usize = 16;

pub(crate) fn run(models: &[&str]) -> anyhow::Result<()> {
    let models = if models.is_empty() { &["tiny", "small"] } else { models };
    models.iter().try_for_each(|name| bench(name))
}

fn bench(name: &str) -> anyhow::Result<()> {
    let model = Model::named(name)?;
    let (hidden, blocks) = (model.extent("hidden_size")?, model.extent("num_hidden_layers")?);
    println!(
        "\n## {name}: hidden {hidden}, {blocks} blocks, {BATCH} x {LENGTH} tokens, prefix {PREFIX}, two servers\n"
    );
    let spans = model.spans(2)?;
    let spans: Vec<&str> = spans.iter().map(String::as_str).collect();
    let started = Instant::now();
    let swarm = ProcessSwarm::start(model.directory(), &spans)?;
    println!("bootstrap node and servers, from exec to ready: {:.2} s", started.elapsed().as_secs_f64());
    println!(
        "\n| what | median ms | best ms | tokens/s | bytes up | bytes down | of Petals' bytes |\n|---|---|---|---|---|---|---|"
    );
    let bench = |arguments: &[&str], reference: Option<usize>| {
        for event in results(swarm.tune("bench")?.args(arguments))? {
            let (up, down) = (number(&event, "sent_bytes")?, number(&event, "received_bytes")?);
            let share = reference.map(|bytes| format!("{:.0} %", 100.0 * (up + down) / bytes as f64));
            let rate = event["tokens_per_s"].as_f64().map(|rate| format!("{rate:.0}"));
            println!(
                "| {} | {:.2} | {:.2} | {} | {up:.0} | {down:.0} | {} |",
                event["label"].as_str().unwrap_or_default(),
                number(&event, "median_ms")?,
                number(&event, "best_ms")?,
                rate.as_deref().unwrap_or("-"),
                share.as_deref().unwrap_or("-"),
            );
        }
        anyhow::Ok(())
    };
    // In a chain the client sees the hops together only; one by one they are timed in a star.
    bench(&["hop", "--relay", "star"], None)?;
    bench(&["decode"], None)?;
    bench(&["forward"], None)?;
    for task in ["causal-lm", "seq-cls"] {
        for (mode, deep) in
            [(["--mode", "ptune"], false), (["--injection", "replace"], true), (["--injection", "add"], true)]
        {
            let arguments = [&["train", "--task", task][..], &mode].concat();
            bench(&arguments, Some(petals_bytes(hidden, blocks, deep)))?;
        }
    }
    for mode in ["prefix", "ia3", "lora", "deep_ptune+lora"] {
        bench(&["train", "--task", "causal-lm", "--mode", mode], None)?;
    }
    println!();
    for server in &swarm.servers {
        println!(
            "server {}: ready after {:.2} s; resident {:.0} MiB for {:.1} MiB of weights",
            server.ready["blocks"].as_str().unwrap_or_default(),
            number(&server.ready, "seconds")?,
            mib(server.resident_bytes()?),
            mib(server.weight_bytes()?)
        );
    }
    Ok(())
}

/// Bytes of the same step by Petals' protocol at f32: per span up 1 and down 1 forward, up 2 and down 1 backward, each
/// `B (m + S) d` values, and with deep prompts three times `n B m d`.
fn petals_bytes(hidden: usize, blocks: usize, deep: bool) -> usize {
    let activations = 5 * 2 * BATCH * (PREFIX + LENGTH) * hidden;
    let prompts = if deep { 3 * blocks * BATCH * PREFIX * hidden } else { 0 };
    4 * (activations + prompts)
}
