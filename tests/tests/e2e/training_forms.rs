//! Where training data come from, what a run says of its time, and for which model its adapter is.

use std::path::{Path, PathBuf};
use std::process::Command;

use petals_e2e::{Goldens, ProcessSwarm, Tune};
use serde_json::{Value, json};

fn write(directory: &Path, name: &str, content: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, content)?;
    Ok(path)
}

fn rows() -> String {
    (0..8)
        .map(|at| json!({"text": format!("the cat {at} sat on the mat."), "label": at % 2}).to_string() + "\n")
        .collect()
}

/// A run with the usual flags and four vectors.
fn train(tune: Tune, task: &str, data: &Path, out: &Path) -> Tune {
    let tune = tune.args(&["--mode", "ptune", "--prefix-len", "4", "--task", task, "--batch-size", "4"]);
    tune.path("--data", data).path("--out", out)
}

fn losses(events: &[Value]) -> Vec<f64> {
    events.iter().filter(|event| event["event"] == "step").filter_map(|event| event["loss"].as_f64()).collect()
}

#[test]
fn the_same_rows_train_the_same_from_a_file_an_archive_and_standard_input() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let plain = write(directory.path(), "d.jsonl", &rows())?;
    let out = |name: &str| directory.path().join(name);
    let events = train(swarm.tune("train")?, "seq-cls", &plain, &out("plain")).events()?;
    let of_file = losses(&events);
    assert_eq!(of_file.len(), 2);
    let packed = Command::new("gzip").arg("-k").arg(&plain).status()?;
    assert!(packed.success());
    let archive = directory.path().join("d.jsonl.gz");
    let of_archive = losses(&train(swarm.tune("train")?, "seq-cls", &archive, &out("archive")).events()?);
    assert_eq!(of_archive, of_file);
    let tune = train(swarm.tune("train")?, "seq-cls", Path::new("-"), &out("input")).args(&["--json"]);
    let output = tune.output_with(&rows())?;
    let stdout = String::from_utf8(output.stdout)?;
    let events: Vec<Value> = stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(losses(&events), of_file, "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_run_says_how_long_it_takes_before_its_first_step_and_what_is_left_behind_each() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let data = write(directory.path(), "d.jsonl", &rows())?;
    let tune = train(swarm.tune("train")?, "seq-cls", &data, &directory.path().join("out"));
    let events = tune.args(&["--steps", "4"]).events()?;
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    let at = |name: &str| names.iter().position(|other| *other == name).unwrap_or(usize::MAX);
    assert!(at("data") < at("estimate") && at("estimate") < at("step"), "{names:?}");
    let estimate = &events[at("estimate")];
    let (step, left) = (estimate["step_s"].as_f64(), estimate["left_s"].as_f64());
    assert!(
        step > Some(0.0) && left.zip(step).is_some_and(|(left, step)| (left - 4.0 * step).abs() < 1e-9),
        "{estimate}"
    );
    let left: Vec<f64> = events.iter().filter(|e| e["event"] == "step").filter_map(|e| e["left_s"].as_f64()).collect();
    assert!(left.len() == 4 && left[0] > 0.0 && left[3] == 0.0, "{left:?}");
    Ok(())
}

#[test]
fn calls_of_tools_are_trained_on() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let template = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ '[' + m.role + ']' }}\
                    {% for c in m.tool_calls %}{{ c.function.name + ' ' + (c.function.arguments | tojson) }}{% endfor %}\
                    {{ (m.content or '') + ' <eos>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";
    let template = write(directory.path(), "template.jinja", template)?;
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {}}}]);
    let call = |arguments: Value| json!({"type": "function", "function": {"name": "look", "arguments": arguments}});
    let talk = |arguments: Value| {
        json!([{"role": "user", "content": "who sat?"}, {"role": "assistant", "content": null, "tool_calls": [call(arguments)]},
               {"role": "tool", "content": "the cat"}, {"role": "assistant", "content": "the cat."}])
    };
    let mut reports = Vec::new();
    for (at, row) in [
        json!({"messages": talk(json!({"z": 1, "a": "mat"})), "tools": tools}),
        json!({"messages": talk(json!("{\"z\": 1, \"a\": \"mat\"}")), "tools": tools.to_string()}),
    ]
    .into_iter()
    .enumerate()
    {
        let data = write(directory.path(), &format!("{at}.jsonl"), &row.to_string())?;
        let tune = train(swarm.tune("train")?, "causal-lm", &data, &directory.path().join(format!("out-{at}")));
        let events = tune.path("--chat-template", &template).events()?;
        let mut report = events.iter().find(|event| event["event"] == "data").cloned().unwrap_or_default();
        report["train"]["file"].take();
        reports.push((report, losses(&events)));
    }
    let labels = reports[0].0["train"]["labels"].as_u64();
    assert!(labels > Some(10) && reports[0].1.len() == 1, "{reports:?}");
    assert_eq!(reports[0], reports[1], "arguments and tools as objects and as texts");
    Ok(())
}

#[test]
fn an_adapter_of_another_model_is_used_with_a_warning_that_names_both() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let peft = goldens.model().with_file_name("peft-prompt-tuning");
    let own = directory.path().join("own");
    std::fs::create_dir(&own)?;
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(peft.join(name), own.join(name))?;
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(own.join("adapter_config.json"))?)?;
    let mut warned = |base: &str| {
        config["base_model_name_or_path"] = base.into();
        write(&own, "adapter_config.json", &config.to_string())?;
        let tune = swarm.tune("generate")?.path("--adapter", &own);
        let output = tune.args(&["--prompt", "the cat", "--max-new-tokens", "2"]).output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let stderr = warned("org/Another-7B")?;
    assert!(stderr.contains("org/Another-7B") && stderr.contains("the model given is model"), "{stderr}");
    assert!(!warned("/somewhere/Model/")?.contains("was made for"), "a folder of the same name");
    Ok(())
}
