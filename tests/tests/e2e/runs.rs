//! What a run writes down, read by those that it is for: TensorBoard, the hub's library, `petals-tune report`, and people.

use std::fs;
use std::path::{Path, PathBuf};

use petals_e2e::{Goldens, ProcessSwarm, Tune};
use serde_json::{Value, json};

use crate::openai::{python_with, seen};

/// Lines of a run's file that are events of this name.
fn lines(out: &Path, event: &str) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(out.join("metrics.jsonl"))?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line["event"] == event).collect())
}

fn steps(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["step"].as_u64().unwrap_or(u64::MAX)).collect()
}

fn classify(tune: Tune, out: &Path, more: &[&str]) -> Tune {
    let data = Goldens::data("train-cls.jsonl");
    let fixed = ["--mode", "ptune", "--prefix-len", "4", "--task", "seq-cls", "--batch-size", "4", "--steps", "60"];
    let every = ["--save-every", "5", "--eval-every", "10", "--eval-first", "--tensorboard"];
    tune.args(&fixed).args(&every).path("--data", &data).path("--eval", &data).path("--out", out).args(more)
}

/// The data of a page.
fn data_of(page: &str) -> anyhow::Result<Value> {
    let data = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next());
    Ok(serde_json::from_str(data.unwrap_or_default())?)
}

#[test]
fn a_resumed_classifier_can_be_looked_at_in_tensorboard_on_the_hub_and_on_a_page() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("<b>first & last");
    // Killed behind step 23, or soon after: some steps are made twice.
    let (_, ended) = classify(swarm.tune("train")?, &out, &[]).watch(|event| event["step"] != 23)?;
    assert!(!ended, "stopped by the test");
    let events = classify(swarm.tune("train")?, &out, &["--resume"]).events()?;
    let resumed = steps(&lines(&out, "resumed")?);
    assert!(resumed.len() == 1 && (20..60).contains(&resumed[0]) && resumed[0].is_multiple_of(5), "{resumed:?}");
    assert_eq!(steps(&lines(&out, "step")?), (1..=60).collect::<Vec<_>>());
    let evals = steps(&lines(&out, "eval")?);
    // What was saved and not yet measured when it was killed is not measured any more.
    let all: Vec<u64> = (0..=60).step_by(10).collect();
    let without: Vec<u64> = all.iter().copied().filter(|step| *step != resumed[0]).collect();
    assert!(evals == all || evals == without, "{evals:?}, {resumed:?}");
    let run = lines(&out, "run")?;
    assert_eq!((run.len(), &run[0]["settings"]["--batch-size"], &run[0]["total_steps"]), (1, &json!("4"), &json!(60)));
    let route = lines(&out, "route")?;
    let blocks: Vec<&Value> = route[0]["hops"].as_array().into_iter().flatten().map(|hop| &hop["blocks"]).collect();
    assert_eq!(blocks, ["0..2", "2..4"]);
    // What is printed is what is written, with all classes by name.
    let measured = events.iter().rfind(|event| event["event"] == "eval").cloned().unwrap_or_default();
    let labels: Vec<&Value> = measured["confusion"]["labels"].as_array().into_iter().flatten().collect();
    assert_eq!(labels, ["angry", "calm", "happy"]);
    let evaluated = swarm.tune("eval")?.path("--adapter", &out).path("--data", &Goldens::data("train-cls.jsonl"));
    let evaluated = evaluated.events()?.into_iter().find(|event| event["event"] == "eval").unwrap_or_default();
    assert_eq!(evaluated["confusion"], measured["confusion"]);
    assert_eq!(evaluated["macro_f1"], measured["macro_f1"]);

    let page = directory.path().join("page.html");
    let other = directory.path().join("other");
    classify(swarm.tune("train")?, &other, &["--lr", "0.5"]).events()?;
    let report = Tune::bare(&["report"])?.args(&[out.to_str().unwrap_or_default(), other.to_str().unwrap_or_default()]);
    let told = report.path("--out", &page).events()?;
    assert_eq!(told, [json!({"event": "report", "out": page, "runs": 2})]);
    let page = fs::read_to_string(&page)?;
    assert!(!page.contains("<b>first"), "a folder's name stays a text");
    let runs = data_of(&page)?;
    let got = |path: &str| runs.pointer(path).cloned().unwrap_or_default();
    assert_eq!((got("/0/name"), got("/0/resumed/0")), (json!("<b>first & last"), json!(resumed[0])));
    assert_eq!((got("/1/began/settings/--lr"), got("/1/last_step")), (json!("0.5"), json!(60)));
    assert_eq!(got("/0/confusion"), measured["confusion"]);
    let refused = Tune::bare(&["report"])?.args(&[directory.path().to_str().unwrap_or_default()]).output()?;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("has no metrics.jsonl"), "{stderr}");

    let modules = "huggingface_hub, sklearn, tensorboard, yaml";
    let Some(python) = python_with("runs-venv", modules, "requirements-runs.txt")? else { return Ok(()) };
    let seen = seen(&python, "run_readers.py", &[out.to_str().unwrap_or_default()])?;
    let measured = json!(evals.len());
    assert_eq!((&seen["scalars"]["train/loss"], &seen["scalars"]["eval/macro_f1"]), (&json!(60), &measured));
    assert_eq!((&seen["matrices"], &seen["card"]["pipeline"]), (&measured, &json!("text-classification")));
    assert_eq!((&seen["card"]["library"], &seen["card"]["base_model"]), (&json!("peft"), &json!("model")));
    Ok(())
}

#[test]
fn held_out_texts_go_on_as_generate_writes_them() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("run");
    let prompts = ["who sat on the mat?", "tea or bread?"];
    let rows = [
        json!({"prompt": prompts[0], "completion": " the cat."}),
        json!({"prompt": prompts[1], "completion": " warm bread and the tea"}),
        json!({"text": "the river was high, so we walked home."}),
        json!({"text": "and the dog ran to the door"}),
    ];
    let data: PathBuf = directory.path().join("data.jsonl");
    fs::write(&data, rows.map(|row| format!("{row}\n")).concat())?;
    let fixed = ["--mode", "ptune", "--prefix-len", "4", "--task", "causal-lm", "--steps", "4", "--lr", "0.3"];
    let shown = ["--eval-every", "2", "--eval-generate", "3", "--eval-generate-tokens", "8"];
    let tune = swarm.tune("train")?.args(&fixed).args(&shown).path("--data", &data).path("--eval", &data);
    let events = tune.path("--out", &out).events()?;
    let samples: Vec<&Value> = events.iter().filter(|event| event["event"] == "samples").collect();
    assert_eq!(samples.iter().map(|event| &event["step"]).collect::<Vec<_>>(), [2, 4]);
    let last = samples.last().and_then(|event| event["samples"].as_array()).cloned().unwrap_or_default();
    assert_eq!(last.len(), 3);
    assert_eq!(last[1]["expected"], " warm bread and the tea");
    for (sample, prompt) in last.iter().zip(prompts) {
        let generate = swarm.tune("generate")?.path("--adapter", &out);
        let flags = ["--prompt", prompt, "--max-new-tokens", "8", "--temperature", "0"];
        let generated = generate.args(&flags).events()?;
        assert_eq!(sample["generated"], generated.last().cloned().unwrap_or_default()["text"], "{sample}");
        assert_eq!(sample["prompt"], prompt);
    }
    let perplexity = events.iter().rfind(|event| event["event"] == "eval").cloned().unwrap_or_default();
    let (loss, got) = (perplexity["loss"].as_f64(), perplexity["perplexity"].as_f64());
    assert!((loss.unwrap_or(f64::NAN).exp() - got.unwrap_or(f64::NAN)).abs() < 1e-9, "{perplexity}");
    assert_eq!(lines(&out, "samples")?.len(), 2);
    assert!(fs::read_to_string(out.join("README.md"))?.contains("Perplexity"));
    Ok(())
}

#[test]
fn servers_that_fail_and_the_routes_around_them_are_written_down() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4", "0..4"])?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("run");
    fs::create_dir_all(&out)?;
    fs::write(out.join("README.md"), "# Mine\n")?;
    let fixed = ["--mode", "ptune", "--prefix-len", "4", "--task", "causal-lm", "--steps", "400", "--batch-size", "4"];
    let data = Goldens::data("train-causal.jsonl");
    let peers = |route: &Value| -> Vec<String> {
        let hops = route["hops"].as_array().cloned().unwrap_or_default();
        hops.iter().filter_map(|hop| Some(hop["peer"].as_str()?.to_owned())).collect()
    };
    let tune = swarm.tune("train")?.args(&fixed).path("--data", &data).path("--out", &out);
    let mut silent = String::new();
    let (_, ended) = tune.watch(|event| {
        if event["step"] == 3 && silent.is_empty() {
            // Whoever runs the steps falls silent.
            let routes = lines(&out, "route").unwrap_or_default();
            silent = routes.last().map(peers).unwrap_or_default().pop().unwrap_or_default();
            let server = swarm.servers.iter().find(|server| server.address.ends_with(&silent));
            assert!(server.is_some_and(|server| server.signal("STOP").is_ok()), "{routes:?}");
        }
        true
    })?;
    assert!(ended, "the run goes on without it");
    let routes = lines(&out, "route")?;
    let last = routes.last().map(peers).unwrap_or_default();
    assert!(!silent.is_empty() && !last.contains(&silent) && last.len() == 1, "{silent}: {routes:?}");
    let late = [lines(&out, "outpaced")?, lines(&out, "hop_failed")?].concat();
    assert!(late.iter().any(|event| event["peer"] == silent.as_str() && event["step"].as_u64() > Some(3)), "{late:?}");
    assert_eq!(fs::read_to_string(out.join("README.md"))?, "# Mine\n", "somebody else's");
    Ok(())
}
