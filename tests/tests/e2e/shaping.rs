//! Label smoothing, class weights, averages, dropout, networks that make the tables, and `--lr auto`, by `petals-tune train`.

use std::fs;
use std::path::Path;

use petals_e2e::{Goldens, ProcessSwarm, Tune, assert_curves_close, send_signal};
use serde_json::Value;

use crate::curves::training;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// Losses on held-out data, in their order.
fn evals(events: &[Value]) -> Vec<f64> {
    events.iter().filter(|event| event["event"] == "eval").filter_map(|event| event["loss"].as_f64()).collect()
}

fn steps(events: &[Value]) -> Vec<f64> {
    events.iter().filter(|event| event["event"] == "step").filter_map(|event| event["loss"].as_f64()).collect()
}

#[test]
fn smoothed_weighted_and_averaged_runs_equal_those_of_torch_however_they_are_cut() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let recorded: Value = serde_json::from_str(&fs::read_to_string(goldens.path("shaped.json"))?)?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let directory = tempfile::tempdir()?;
    let runs = recorded["runs"].as_array().cloned().unwrap_or_default();
    assert_eq!(runs.len(), 3);
    for (number, run) in runs.iter().enumerate() {
        let task = run["task"].as_str().unwrap_or_default();
        let smoothing = run["smoothing"].to_string();
        let weights = match (number, &run["weights"]) {
            (_, Value::Null) => None,
            // These are what `balanced` makes of the data.
            (0, _) => Some("balanced".to_owned()),
            (_, weights) => {
                let weights = numbers(weights);
                Some(format!("angry={},calm={},happy={}", weights[0], weights[1], weights[2]))
            }
        };
        let data = Goldens::data(if task == "seq-cls" { "train-cls.jsonl" } else { "train-causal.jsonl" });
        for (name, cut) in [("whole", &[][..]), ("single", &["--micro-batch-tokens", "1"][..])] {
            let out = directory.path().join(format!("{number}-{name}"));
            let mut tune = training(&swarm, &goldens, "replace", task, &out)?.args(cut);
            tune = tune.args(&["--label-smoothing", &smoothing, "--ema", &recorded["decay"].to_string()]);
            if let Some(weights) = &weights {
                tune = tune.args(&["--class-weights", weights]);
            }
            let events = tune.path("--eval", &data).events()?;
            assert_curves_close(&format!("{task}, {name}"), &steps(&events), &numbers(&run["losses"]), 1e-3);
            // What is measured is plain, and of the average.
            assert_curves_close(task, &evals(&events), &[run["held_out"].as_f64().unwrap_or(f64::NAN)], 1e-3);
            // And what is saved is the average too.
            let measured = swarm.tune("eval")?.path("--adapter", &out).path("--data", &data).events()?;
            let measured: Vec<f64> = measured.iter().filter_map(|event| event["loss"].as_f64()).collect();
            assert_curves_close(task, &measured, &evals(&events), 1e-4);
        }
    }
    Ok(())
}

/// A short run on the causal data.
fn run(swarm: &ProcessSwarm, mode: &str, flags: &[&str], out: &Path) -> anyhow::Result<Tune> {
    let data = Goldens::data("train-causal.jsonl");
    let rows: &[&str] = if mode == "lora" { &[] } else { &["--prefix-len", "4"] };
    let tune = swarm.tune("train")?.args(&["--mode", mode]).args(rows).args(&["--task", "causal-lm"]);
    let tune = tune.args(&["--steps", "8", "--batch-size", "4", "--seed", "3", "--save-every", "1"]).args(flags);
    // One cut of each batch, whatever was measured, so that runs can be compared to the last digits.
    let tune = tune.args(&["--micro-batch-tokens", "1000"]);
    Ok(tune.path("--data", &data).path("--eval", &data).path("--out", out))
}

#[test]
fn runs_that_are_killed_go_on_exactly_whatever_shapes_them() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    for (number, (mode, flags)) in [
        ("deep_ptune", &["--prompt-dropout", "0.3", "--ema", "0.9"][..]),
        ("prefix", &["--prompt-dropout", "0.2"]),
        ("deep_ptune", &["--reparam", "mlp", "--reparam-width", "8", "--ema", "0.5"]),
        ("deep_ptune+lora", &["--reparam", "p-tuning-mlp"]),
        ("ptune", &["--reparam", "p-tuning-lstm", "--reparam-width", "6"]),
        ("prefix", &["--reparam", "prefix-projection", "--prompt-dropout", "0.1"]),
    ]
    .into_iter()
    .enumerate()
    {
        let whole = run(&swarm, mode, flags, &directory.path().join(format!("{number}")))?.events()?;
        let (whole, held_out) = (steps(&whole), evals(&whole));
        assert!(whole.len() == 8 && held_out.len() == 1, "{mode} {flags:?}: {whole:?}");
        let out = directory.path().join(format!("{number}-killed"));
        let (mut losses, finished) = run(&swarm, mode, flags, &out)?.watch(|event| event["step"] != 4)?;
        assert!(!finished);
        let events = run(&swarm, mode, flags, &out)?.args(&["--resume"]).events()?;
        let rest = steps(&events);
        losses.truncate(8 - rest.len());
        losses.extend(&rest);
        assert_curves_close(&format!("{mode} {flags:?}"), &losses, &whole, 1e-5);
        assert_curves_close(&format!("{mode} {flags:?}, held out"), &evals(&events), &held_out, 1e-5);
        // The adapter is what was measured, without dropout and without the network.
        let data = Goldens::data("train-causal.jsonl");
        let measured = swarm.tune("eval")?.path("--adapter", &out).path("--data", &data).events()?;
        let measured: Vec<f64> = measured.iter().filter_map(|event| event["loss"].as_f64()).collect();
        assert_curves_close(mode, &measured, &held_out, 1e-4);
        // Another setting is another run.
        let other = run(&swarm, mode, &["--resume"], &out)?.output()?;
        let stderr = String::from_utf8_lossy(&other.stderr);
        assert_eq!(other.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(flags[0]) && stderr.contains("is now not given"), "{stderr}");
    }
    Ok(())
}

#[test]
fn a_rate_is_found_kept_and_not_looked_for_again() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let named = |events: &[Value], name: &str| -> Vec<Value> {
        events.iter().filter(|event| event["event"] == name).cloned().collect()
    };
    for mode in ["ptune", "lora"] {
        let out = directory.path().join(mode);
        let events = run(&swarm, mode, &["--lr", "auto"], &out)?.events()?;
        let (tried, chosen) = (named(&events, "lr_tried"), named(&events, "lr_chosen"));
        assert!(tried.len() >= 2 && chosen.len() == 1, "{mode}: {tried:?}");
        let rate = chosen[0]["lr"].as_f64().unwrap_or(f64::NAN);
        let best = tried.iter().filter(|one| one["stable"] == true).filter_map(|one| one["last"].as_f64());
        let best = best.fold(f64::INFINITY, f64::min);
        let own = tried.iter().find(|one| one["lr"] == rate).and_then(|one| one["last"].as_f64()).unwrap_or(f64::NAN);
        assert!(own <= best + 0.1, "{mode}: {own} for {best}");
        // Every rate began where the run began, and the run is as one that was given the rate.
        let first: Vec<f64> = tried.iter().map(|one| one["losses"][0].as_f64().unwrap_or(f64::NAN)).collect();
        let losses = steps(&events);
        assert_curves_close("first losses", &first, &vec![losses[0]; first.len()], 1e-5);
        let given = run(&swarm, mode, &["--lr", &rate.to_string()], &directory.path().join(format!("{mode}-given")))?;
        assert_curves_close(mode, &given.losses()?, &losses, 1e-5);
        // Going on, with the word or with the number, tries nothing.
        for lr in ["auto", &rate.to_string()] {
            let more = run(&swarm, mode, &["--lr", lr, "--resume"], &out)?.events()?;
            assert!(named(&more, "lr_tried").is_empty(), "{more:?}");
        }
    }
    Ok(())
}

#[test]
fn a_search_for_a_rate_can_be_interrupted_and_leaves_nothing() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("out");
    let (_, finished) = run(&swarm, "ptune", &["--lr", "auto"], &out)?.watch_with_id(|process, event| {
        if event["event"] == "lr_tried" {
            let _ = swarm.servers[0].signal("STOP").and_then(|()| send_signal(process, "INT"));
        }
        true
    })?;
    swarm.servers[0].signal("CONT")?;
    assert!(!finished && !out.join("training_state").exists());
    Ok(())
}

#[test]
fn flags_that_do_not_fit_are_refused_before_a_swarm_is_joined() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let out = tempfile::tempdir()?.path().join("out");
    let mlp = goldens.path("init-ptune").display().to_string();
    for (mode, flags, named) in [
        ("ptune", &["--class-weights", "balanced"][..], "--class-weights"),
        ("lora", &["--prompt-dropout", "0.1"], "--prompt-dropout"),
        ("lora", &["--reparam", "mlp"], "--reparam"),
        ("ptune", &["--reparam", "prefix-projection"], "--reparam"),
        ("prefix", &["--reparam", "p-tuning-mlp"], "--reparam"),
        ("ptune", &["--reparam", "p-tuning-lstm", "--init", "sample-vocab"], "--init"),
        ("ptune", &["--reparam", "mlp", "--init-from", &mlp], "--init-from"),
        ("ptune", &["--reparam", "p-tuning-mlp", "--reparam-width", "60000"], "smaller width"),
        ("ptune", &["--reparam-width", "6"], "--reparam"),
        ("ptune", &["--label-smoothing", "1.5"], "--label-smoothing"),
        ("ptune", &["--ema", "1"], "--ema"),
        ("ptune", &["--lr", "automatic"], "--lr"),
    ] {
        let output = run(&swarm, mode, flags, &out)?.args(&["--validate"]).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{mode} {flags:?}: {stderr}");
        assert!(stderr.contains(named), "{mode} {flags:?}: {stderr}");
    }
    Ok(())
}
