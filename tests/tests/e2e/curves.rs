//! Twenty optimiser steps by `petals-tune train` against torch's AdamW and transformers' schedules.

use std::path::Path;

use petals_e2e::{Goldens, ProcessSwarm, Tune, assert_curves_close};

/// The run that `curve.<mode>.<task>` records.
pub(crate) fn training(
    swarm: &ProcessSwarm,
    goldens: &Goldens,
    mode: &str,
    task: &str,
    out: &Path,
) -> anyhow::Result<Tune> {
    let batch_size = goldens.value("optimiser")["batch_size"].to_string();
    Ok(training_in_batches(swarm, goldens, mode, task, out)?.args(&["--batch-size", &batch_size]))
}

fn training_in_batches(
    swarm: &ProcessSwarm,
    goldens: &Goldens,
    mode: &str,
    task: &str,
    out: &Path,
) -> anyhow::Result<Tune> {
    let options = goldens.value("optimiser");
    let text = |name: &str| options[name].to_string().trim_matches('"').to_owned();
    let data = Goldens::data(if task == "seq-cls" { "train-cls.jsonl" } else { "train-causal.jsonl" });
    let tuning: &[&str] = match mode {
        "ptune" => &["--mode", "ptune"],
        injection => &["--mode", "deep_ptune", "--injection", injection],
    };
    Ok(swarm
        .tune("train")?
        .args(tuning)
        .args(&["--prefix-len", "5", "--task", task, "--no-shuffle", "--max-length", "64"])
        .args(&["--steps", &text("steps"), "--lr", &text("lr")])
        .args(&["--weight-decay", &text("weight_decay"), "--clip", &text("clip")])
        .args(&["--schedule", &text("schedule"), "--warmup", &text("warmup")])
        .path("--data", &data)
        .path("--init-from", &goldens.path(&format!("init-{mode}")))
        .path("--out", out))
}

#[test]
fn loss_curves_equal_torchs_for_every_mode_and_task() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let splits: [(&str, &[&str]); 3] =
        [("llama-gqa", &["0..1", "1..3", "3..4"]), ("mistral", &["0..4"]), ("qwen3", &["0..2", "2..4"])];
    for (family, spans) in splits {
        let goldens = Goldens::load(family)?;
        let swarm = ProcessSwarm::start(&goldens.model(), spans)?;
        for mode in ["ptune", "replace", "add"] {
            for task in ["causal-lm", "seq-cls"] {
                let expected = goldens.numbers(&format!("curve.{mode}.{task}"));
                let out = directory.path().join(format!("{family}-{mode}-{task}"));
                let losses = training(&swarm, &goldens, mode, task, &out)?.losses()?;
                assert_curves_close(&format!("{family}, {mode}, {task}"), &losses, &expected, 1e-3);
            }
        }
    }
    Ok(())
}

#[test]
fn the_micro_batch_split_does_not_change_the_losses() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let run = |name: &str, arguments: &[&str]| {
        let out = directory.path().join(name);
        training(&swarm, &goldens, "replace", "causal-lm", &out)?.args(arguments).losses()
    };
    let whole = run("whole", &[])?;
    assert_curves_close("one example at a time", &run("single", &["--micro-batch-tokens", "1"])?, &whole, 1e-5);
    let halves = training_in_batches(&swarm, &goldens, "replace", "causal-lm", &directory.path().join("halves"))?;
    let halves = halves.args(&["--batch-size", "2", "--accumulation", "2"]).losses()?;
    assert_curves_close("accumulated over two batches", &halves, &whole, 1e-5);
    Ok(())
}
