//! What narrow wires and half-precision weights do to the loss.
//!
//! usage: cargo run --release --workspace --example wire_loss -- [STEPS]
//!
//! Tunes the demo model through two servers (real processes over loopback) in each wire dtype, and once with weights in
//! bf16, from the same start and in the same order, and prints the losses beside those of f32.

use std::path::{Path, PathBuf};

use petals_e2e::ProcessSwarm;

/// Steps whose losses are averaged for the comparison: single ones jump with their batch.
const LAST: usize = 10;

/// A run: its name, arguments of the servers, and the dtype on the wire.
const RUNS: [(&str, &[&str], &str); 5] = [
    ("f32", &[], "f32"),
    ("bf16", &[], "bf16"),
    ("f16", &[], "f16"),
    ("int8", &[], "int8"),
    ("f32, weights bf16", &["--dtype", "bf16"], "f32"),
];

/// A task: its name, data, and how its tables are trained.
const TASKS: [(&str, &str, &[&str]); 3] = [
    (
        "seq-cls, deep replace",
        "reviews-train.jsonl",
        &["--task", "seq-cls", "--mode", "deep_ptune", "--lr", "1e-3", "--schedule", "linear"],
    ),
    (
        "causal-lm, deep add",
        "persona-train.jsonl",
        &["--task", "causal-lm", "--mode", "deep_ptune", "--injection", "add", "--lr", "1e-2", "--schedule", "linear"],
    ),
    ("causal-lm, ptune", "persona-train.jsonl", &["--task", "causal-lm", "--mode", "ptune", "--lr", "3e-2"]),
];

fn main() -> anyhow::Result<()> {
    let steps: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let mut losses = vec![Vec::new(); TASKS.len()];
    for (name, arguments, wire) in RUNS {
        let swarm = swarm(&demo.join("model"), arguments)?;
        for ((_, data, training), losses) in TASKS.iter().zip(&mut losses) {
            let data = demo.join("data").join(data);
            losses.push((name, train(&swarm, data, training, wire, steps)?));
        }
    }
    for ((task, ..), runs) in TASKS.iter().zip(&losses) {
        print_table(task, runs);
    }
    Ok(())
}

fn swarm(model: &Path, arguments: &[&str]) -> anyhow::Result<ProcessSwarm> {
    let mut swarm = ProcessSwarm::start(model, &[])?;
    for span in ["0..4", "4..8"] {
        let server = swarm.spawn_server(&[&["--blocks", span], arguments].concat())?;
        swarm.servers.push(server);
    }
    for server in &mut swarm.servers {
        server.ready = server.event("ready")?;
    }
    Ok(swarm)
}

fn train(swarm: &ProcessSwarm, data: PathBuf, training: &[&str], wire: &str, steps: usize) -> anyhow::Result<Vec<f64>> {
    let out = tempfile::tempdir()?;
    let losses = swarm
        .tune("train")?
        .args(training)
        .args(&["--prefix-len", "8", "--batch-size", "16", "--warmup", "10", "--micro-batch-tokens", "256"])
        .args(&["--steps", &steps.to_string(), "--wire-dtype", wire])
        .path("--data", &data)
        .path("--out", &out.path().join("adapter"))
        .losses()?;
    anyhow::ensure!(losses.len() == steps, "{} losses of {steps} steps", losses.len());
    Ok(losses)
}

fn print_table(task: &str, runs: &[(&str, Vec<f64>)]) {
    let steps = runs.first().map_or(0, |(_, losses)| losses.len());
    let marks: Vec<usize> = [1, steps / 4, steps / 2, steps].into_iter().filter(|&step| step > 0).collect();
    let names: Vec<String> = marks.iter().map(|step| format!("step {step}")).collect();
    println!("\n### {task}\n");
    println!("| wire | {} | mean of the last {LAST} | beside f32 | largest of any step |", names.join(" | "));
    println!("|---|{}---:|---:|---:|", "---:|".repeat(marks.len()));
    let end = |losses: &[f64]| {
        let last = &losses[losses.len().saturating_sub(LAST)..];
        last.iter().sum::<f64>() / last.len().max(1) as f64
    };
    let Some((_, reference)) = runs.first() else { return };
    for (name, losses) in runs {
        let at: Vec<String> = marks.iter().map(|&step| format!("{:.4}", losses[step - 1])).collect();
        let largest = losses.iter().zip(reference).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
        println!(
            "| {name} | {} | {:.4} | {:+.3} % | {:.3} % |",
            at.join(" | "),
            end(losses),
            100.0 * (end(losses) / end(reference) - 1.0),
            100.0 * largest
        );
    }
}
