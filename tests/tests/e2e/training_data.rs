//! Training data as people have them: what is found out before a swarm is joined, and that what was accepted is trained on.

use std::path::{Path, PathBuf};

use petals_e2e::{Goldens, ProcessSwarm, Tune};
use serde_json::{Value, json};

const NOBODY: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";

fn write(directory: &Path, name: &str, content: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, content)?;
    Ok(path)
}

/// Rows for a classifier, the last of which is longer than what fits.
fn rows(count: usize) -> String {
    let row = |at: usize, text: String| json!({"text": text, "label": at % 2}).to_string();
    let short = (0..count - 1).map(|at| row(at, format!("the cat {at} sat on the mat.")));
    short.chain([row(1, "the cat sat on the mat. ".repeat(200))]).collect::<Vec<_>>().join("\n")
}

/// A training run with the usual flags and 16 vectors, of which a model with 512 positions leaves 496.
fn train(tune: Tune, task: &str, data: &Path, out: &Path) -> Tune {
    let tune = tune.args(&["--mode", "ptune", "--prefix-len", "16", "--task", task]);
    tune.path("--data", data).path("--out", out)
}

fn validate(model: &Path, task: &str, data: &Path, more: &[&str]) -> anyhow::Result<Tune> {
    let out = data.with_extension("out");
    Ok(train(Tune::bare(&["train", "--validate"])?.path("--model", model), task, data, &out).args(more))
}

fn report(tune: Tune) -> anyhow::Result<Value> {
    let events = tune.events()?;
    assert!(events.iter().all(|event| event["event"] == "data"), "nothing but the report: {events:?}");
    Ok(events.first().cloned().unwrap_or_default())
}

fn refused(tune: Tune, words: &[&str]) -> anyhow::Result<()> {
    let output = tune.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is missing in: {stderr}");
    }
    Ok(())
}

#[test]
fn a_validation_reports_the_data_without_a_swarm_and_writes_nothing() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let model = goldens.model();
    let with_empty = format!("{}\n{}\n", rows(9), json!({"text": " ", "label": "ignored"}));
    let data = write(directory.path(), "d.jsonl", &with_empty)?;
    let data_report = report(validate(&model, "seq-cls", &data, &["--batch-size", "4", "--epochs", "2"])?)?;
    let train = &data_report["train"];
    let counts = ["rows", "examples", "empty", "without_label", "cut"].map(|name| train[name].clone());
    assert_eq!(counts, [10, 9, 1, 0, 1].map(Value::from), "{data_report}");
    assert_eq!(train["classes"], json!([{"label": 0, "examples": 4}, {"label": 1, "examples": 5}]));
    assert_eq!((&data_report["max_length"], &data_report["steps"]), (&json!(496), &json!(6)));
    assert!(!data.with_extension("out").exists());
    let output = validate(&model, "seq-cls", &data, &[])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 cut to 496 tokens"), "{text}");
    Ok(())
}

#[test]
fn what_is_wrong_is_found_before_a_swarm_is_joined() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let data = write(directory.path(), "d.jsonl", &rows(9))?;
    let model = goldens.model();
    let run = |data: &Path, more: &[&str]| {
        let tune = Tune::bare(&["train", "--peers", NOBODY])?.path("--model", &model);
        anyhow::Ok(train(tune, "seq-cls", data, &directory.path().join("out")).args(more))
    };
    refused(run(&data, &["--max-length", "497"])?, &["--max-length 497", "at most 496"])?;
    let fraction = write(directory.path(), "f.jsonl", "{\"text\": \"a\", \"label\": 0.5}\n")?;
    refused(run(&fraction, &[])?, &["f.jsonl:1", "0.5"])?;
    let held_out = write(directory.path(), "e.jsonl", "{\"text\": \"a\", \"label\": 7}\n")?;
    refused(run(&data, &["--eval", held_out.to_str().unwrap_or_default()])?, &["e.jsonl:1", "7"])?;
    let pickled = directory.path().join("pickled");
    std::fs::create_dir(&pickled)?;
    write(&pickled, "adapter_model.bin", "PK")?;
    refused(run(&data, &["--init-from", pickled.to_str().unwrap_or_default()])?, &["safe_serialization=True"])?;
    let tune = Tune::bare(&["train", "--peers", NOBODY])?.path("--model", &model);
    refused(train(tune, "seq-cls", &data, &data.join("out")), &["--out", "d.jsonl is a file"])?;
    Ok(())
}

#[test]
fn text_that_is_longer_than_the_model_is_trained_on_with_the_usual_flags() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let data = write(directory.path(), "d.jsonl", &rows(5))?;
    let out = directory.path().join("cls");
    let losses = train(swarm.tune("train")?, "seq-cls", &data, &out).path("--eval", &data).losses()?;
    assert_eq!(losses.len(), 1);
    let notes = write(directory.path(), "notes.txt", &"the cat sat on the mat. ".repeat(200))?;
    let losses = train(swarm.tune("train")?, "causal-lm", &notes, &directory.path().join("notes")).losses()?;
    assert!(losses.iter().all(|loss| loss.is_finite()) && !losses.is_empty(), "{losses:?}");
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("petals_adapter.json"))?)?;
    assert_eq!(manifest["text"]["max_length"], 496, "an evaluation cuts as training did");
    let evaluated = swarm.tune("eval")?.path("--adapter", &out).path("--data", &data).events()?;
    assert!(evaluated.iter().any(|event| event["event"] == "eval"), "{evaluated:?}");
    assert!(evaluated.iter().any(|event| event["eval"]["cut"] == 1), "{evaluated:?}");
    Ok(())
}

#[test]
fn a_resumed_run_may_cut_shorter_and_batch_otherwise_but_not_longer() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let data = write(directory.path(), "d.jsonl", &rows(8))?;
    let out = directory.path().join("out");
    let run = |more: &[&str]| {
        let tune = train(swarm.tune("train")?, "seq-cls", &data, &out);
        anyhow::Ok(tune.args(&["--steps", "6", "--save-every", "1"]).args(more))
    };
    run(&["--batch-size", "4"])?.watch(|event| event["step"] != 3)?;
    refused(run(&["--batch-size", "2", "--resume"])?, &["--batch-size was 4, is now 2"])?;
    refused(run(&["--batch-size", "4", "--resume", "--lr", "1"])?, &["--lr was 0.03, is now 1"])?;
    let shorter = ["--batch-size", "2", "--accumulation", "2", "--resume", "--max-length", "100"];
    let (_, finished) = run(&shorter)?.watch(|event| event["step"] != 5)?;
    assert!(!finished, "stopped by the test");
    let longer = ["--batch-size", "4", "--resume", "--max-length", "101"];
    refused(run(&longer)?, &["--max-length was 100, is now 101"])?;
    let losses = run(&["--batch-size", "4", "--resume"])?.losses()?;
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("petals_adapter.json"))?)?;
    assert_eq!(manifest["text"]["max_length"], 100, "without the flag as before");
    assert!(matches!(losses.len(), 1..=2), "steps 5 and 6, or 6 alone: {losses:?}");
    Ok(())
}

#[test]
fn conversations_and_tables_are_trained_on() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let template = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + ' <eos>' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";
    let template = write(directory.path(), "template.jinja", template)?;
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let asked = [turn("user", "who sat?"), turn("assistant", "the cat."), turn("user", "where?")];
    let whole: Vec<Value> = asked.iter().cloned().chain([turn("assistant", "on the mat.")]).collect();
    let chats =
        [json!({"messages": whole}), json!({"prompt": asked, "completion": [turn("assistant", "on the mat.")]})];
    let chats = write(directory.path(), "chats.json", &json!(chats).to_string())?;
    let tune = train(swarm.tune("train")?, "causal-lm", &chats, &directory.path().join("chats"));
    let events = tune.path("--chat-template", &template).args(&["--batch-size", "1"]).events()?;
    let data = events.iter().find(|event| event["event"] == "data").cloned().unwrap_or_default();
    let (tokens, labels) = (data["train"]["tokens"].as_u64(), data["train"]["labels"].as_u64());
    assert!(labels > Some(0) && labels < tokens.map(|tokens| tokens / 2), "answers alone are learnt: {data}");
    assert_eq!(events.iter().filter(|event| event["event"] == "step").count(), 2);
    let table = write(directory.path(), "d.csv", "review,stars\n\"good, \"\"so\"\" good\nand warm\",5\nbad,1\n")?;
    let tune = train(swarm.tune("train")?, "seq-cls", &table, &directory.path().join("table"));
    let losses = tune.args(&["--text-column", "review", "--label-column", "stars"]).losses()?;
    assert_eq!(losses.len(), 1);
    Ok(())
}
