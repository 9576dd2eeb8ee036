//! Which adapter a run leaves, and the file of what it measured.

use std::fs;

use petals_e2e::{Goldens, ProcessSwarm};
use serde_json::Value;

/// Steps and losses of measurements on held-out data.
fn evals<'a>(events: impl IntoIterator<Item = &'a Value>) -> Vec<(u64, f64)> {
    let of_eval = events.into_iter().filter(|event| event["event"] == "eval");
    of_eval.map(|event| (event["step"].as_u64().unwrap_or(99), event["loss"].as_f64().unwrap_or(f64::NAN))).collect()
}

#[test]
fn a_run_ends_when_it_learns_nothing_more_and_leaves_its_best_adapter() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("run");
    let data = Goldens::data("train-causal.jsonl");
    // Steps as large as these find something better now and then, and soon no more.
    let run = |more: &[&str]| {
        let run =
            swarm.tune("train")?.args(&["--mode", "lora", "--task", "causal-lm", "--lr", "0.5", "--steps", "200"]);
        let run = run.args(&["--batch-size", "4", "--eval-every", "2", "--select", "best", "--patience", "3"]);
        run.args(more).path("--data", &data).path("--eval", &data).path("--out", &out).events()
    };
    let events = run(&[])?;
    let seen = evals(&events);
    let (step, lowest) = seen.iter().copied().reduce(|a, b| if b.1 < a.1 { b } else { a }).unwrap_or_default();
    let last = seen.last().map(|(step, _)| *step).unwrap_or_default();
    assert_eq!(last, step + 6, "three measurements behind the best: {seen:?}");
    let named = |name: &str| events.iter().find(|event| event["event"] == name).cloned().unwrap_or_default();
    assert_eq!((&named("ended_early")["step"], &named("selected")["step"]), (&Value::from(last), &Value::from(step)));
    let manifest: Value = serde_json::from_str(&fs::read_to_string(out.join("petals_adapter.json"))?)?;
    assert_eq!(manifest["step"], step);
    // What is left is what was measured.
    let measured = swarm.tune("eval")?.path("--adapter", &out).path("--data", &data).events()?;
    let loss = measured.iter().find_map(|event| event["loss"].as_f64()).unwrap_or(f64::NAN);
    assert!((loss - lowest).abs() < 1e-4 * lowest, "{loss} for {lowest}");

    let file = fs::read_to_string(out.join("metrics.jsonl"))?;
    let lines: Vec<Value> = file.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(evals(&lines), seen);
    assert_eq!(lines.iter().filter(|line| line["event"] == "step").count() as u64, last);
    // A run that goes on remembers its best, and writes on.
    let events = run(&["--resume"])?;
    let selected = events.iter().find(|event| event["event"] == "selected").cloned().unwrap_or_default();
    let more = evals(&events);
    let better = more.iter().any(|(_, loss)| *loss < lowest);
    assert!(better || selected["step"] == step, "{selected}, {more:?}");
    let file = fs::read_to_string(out.join("metrics.jsonl"))?;
    let lines: Vec<Value> = file.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(evals(&lines), [seen, more].concat());
    Ok(())
}
