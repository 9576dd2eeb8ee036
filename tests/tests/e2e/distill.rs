//! Texts that become prefixes.

use std::fs;
use std::path::Path;

use petals_e2e::{Goldens, ProcessSwarm, Tune};
use serde_json::Value;

/// A text of a few dozen tokens.
const CONTEXT: &str = "The lighthouse keeper counted ships every evening and wrote their names into a book.";

fn distil(swarm: &ProcessSwarm, context: &Path, out: &Path, flags: &[&str]) -> anyhow::Result<Tune> {
    let tune = swarm.tune("distill")?.path("--context", context).path("--out", out);
    Ok(tune.args(&["--batch-size", "4", "--max-length", "48", "--no-shuffle"]).args(flags))
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[test]
fn a_prefix_as_long_as_the_text_is_the_text_and_a_shorter_one_learns_to_be() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..3", "3..4"])?;
    let directory = tempfile::tempdir()?;
    let context = directory.path().join("context.txt");
    fs::write(&context, CONTEXT)?;
    let data = Goldens::data("train-causal.jsonl");
    let run = |name: &str, flags: &[&str]| {
        let tune = distil(&swarm, &context, &directory.path().join(name), flags)?;
        tune.path("--data", &data).path("--eval", &data).events()
    };
    let events = run("probe", &["--prefix-len", "1", "--steps", "1", "--lr", "0"])?;
    let tokens = named(&events, "taught")[0]["context_tokens"].as_u64().unwrap_or(0);
    assert!(tokens > 10, "{events:?}");

    let whole = run("whole", &["--prefix-len", &tokens.to_string(), "--steps", "2", "--lr", "0"])?;
    let taught = named(&whole, "taught")[0];
    for step in named(&whole, "step") {
        assert!(number(&step["loss"]).abs() < 1e-5, "teacher and student are the same: {step}");
    }
    let measured = number(&named(&whole, "eval")[0]["loss"]);
    assert!((measured - number(&taught["loss"])).abs() < 1e-4, "{measured}, {taught}");
    assert!(
        (number(&taught["loss"]) - number(&taught["loss_without"])).abs() > 1e-5,
        "the text changes nothing: {taught}"
    );

    let short = run("short", &["--prefix-len", "2", "--steps", "40", "--lr", "0.1"])?;
    let losses: Vec<f64> = named(&short, "step").iter().map(|step| number(&step["loss"])).collect();
    let (first, last) = (losses[..5].iter().sum::<f64>(), losses[35..].iter().sum::<f64>());
    assert!(losses.iter().all(|loss| *loss > 0.0) && last < 0.6 * first, "{losses:?}");
    Ok(())
}

#[test]
fn a_model_writes_its_own_texts_and_goes_on_where_it_was_stopped() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let (context, out) = (directory.path().join("context.txt"), directory.path().join("out"));
    fs::write(&context, CONTEXT)?;
    let study = out.join("study.jsonl");
    let flags =
        |texts: &'static str| ["--prefix-len", "3", "--self-study", texts, "--study-tokens", "12", "--steps", "2"];
    distil(&swarm, &context, &out, &flags("5"))?.events()?;
    let first = fs::read_to_string(&study)?;
    assert_eq!(first.lines().count(), 5);
    for line in first.lines() {
        let row: Value = serde_json::from_str(line)?;
        assert!(row["completion"].is_string() || row["messages"].is_array(), "{row}");
    }
    // The last text was being written when the machine went down.
    fs::write(&study, &first[..first.len() - 7])?;
    let refused = distil(&swarm, &context, &out, &flags("5"))?.output()?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--resume"), "{refused:?}");
    distil(&swarm, &context, &out, &flags("5"))?.args(&["--resume"]).events()?;
    assert_eq!(fs::read_to_string(&study)?, first, "a text depends on its number alone");
    Ok(())
}

#[test]
fn what_cannot_be_distilled_is_named() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let (context, out) = (directory.path().join("context.txt"), directory.path().join("out"));
    let data = Goldens::data("train-causal.jsonl");
    let refused = |flags: &[&str]| {
        let output = distil(&swarm, &context, &out, flags)?.path("--data", &data).output()?;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        anyhow::Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    fs::write(&context, "")?;
    assert!(refused(&["--prefix-len", "2"])?.contains("has no text"));
    fs::write(&context, CONTEXT.repeat(200))?;
    let long = refused(&["--prefix-len", "2"])?;
    assert!(long.contains("positions") && long.contains("prefix") || long.contains("context"), "{long}");
    let train =
        swarm.tune("train")?.args(&["--mode", "prefix", "--prefix-len", "2"]).path("--data", &data).path("--out", &out);
    let output = train.args(&["--task", "distill"]).output()?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("--context"), "{output:?}");
    Ok(())
}
