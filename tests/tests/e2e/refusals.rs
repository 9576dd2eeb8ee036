//! Models that cannot be used: every program says the same of them, all of it.

use std::path::Path;

use petals_e2e::{Goldens, Node, Tune};
use serde_json::{Value, json};
use tempfile::TempDir;

const PEER: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";

/// A copy of a family's model.
fn copy(family: &str) -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for file in std::fs::read_dir(Goldens::load(family)?.model())? {
        let file = file?;
        std::fs::copy(file.path(), directory.path().join(file.file_name()))?;
    }
    Ok(directory)
}

/// A copy whose configuration has keys set.
fn with(family: &str, keys: &Value) -> anyhow::Result<TempDir> {
    let directory = copy(family)?;
    let path = directory.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for (key, value) in keys.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    std::fs::write(path, config.to_string())?;
    Ok(directory)
}

fn says(who: &str, text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{who}: `{word}` is missing in: {text}");
    }
}

/// Servers refuse the model with all of `words`, before they join anything.
fn refused_by_nodes(model: &Path, words: &[&str]) -> anyhow::Result<()> {
    let model = model.to_str().unwrap_or_default();
    let network = ["--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns", "--no-upnp"];
    let doctor = Node::output(&[&["doctor", "--model", model, "--device", "cpu"], &network[..]].concat())?;
    let text = String::from_utf8_lossy(&doctor.stdout);
    let check = text.split_once("FAIL  model").map_or("", |(_, rest)| rest);
    // Its own line and the one with the remedy.
    let check: Vec<&str> = check.lines().take(2).collect();
    assert_eq!(doctor.status.code(), Some(1), "{text}");
    says("doctor", &check.join("\n"), words);

    let serve = Node::output(&[&["serve", "--model", model, "--device", "cpu"], &network[..]].concat())?;
    let text = String::from_utf8_lossy(&serve.stderr);
    assert_eq!(serve.status.code(), Some(2), "{text}");
    says("serve", &text, words);

    let bench = Node::output(&["bench", "forward", "--model", model, "--device", "cpu"])?;
    let text = String::from_utf8_lossy(&bench.stderr);
    assert_eq!(bench.status.code(), Some(2), "{text}");
    says("bench", &text, words);
    Ok(())
}

fn refused_by_clients(model: &Path, words: &[&str]) -> anyhow::Result<()> {
    let generate = ["generate", "--peers", PEER, "--prompt", "the", "--max-new-tokens", "1"];
    for command in [&["route", "--peers", PEER][..], &generate] {
        let output = Tune::bare(command)?.path("--model", model).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        says(command[0], &text, words);
    }
    Ok(())
}

#[test]
fn a_refused_configuration_is_named_by_key_value_and_way_out_everywhere() -> anyhow::Result<()> {
    let spiral = json!({"rope_type": "spiral", "factor": 2.0});
    let cases = [
        (
            with("llama-gqa", &json!({"rope_scaling": spiral}))?,
            [
                "`rope_scaling.rope_type` = `spiral`",
                "supported are default, linear, dynamic, yarn",
                "use another model",
            ],
        ),
        (
            with("mistral", &json!({"hidden_act": "mish"}))?,
            ["`hidden_act` = `mish`", "supported are silu", "use another model"],
        ),
        (
            with("qwen2", &json!({"quantization_config": {"quant_method": "hqq", "bits": 4}}))?,
            [
                "`quantization_config.quant_method` = `hqq` with 4 bits",
                "F32, BF16 or F16",
                "use the model that this one was made from",
            ],
        ),
    ];
    for (model, words) in cases {
        refused_by_nodes(model.path(), &words)?;
        refused_by_clients(model.path(), &words)?;
    }
    Ok(())
}

#[test]
fn files_that_are_not_what_they_should_be_are_named_with_a_way_out() -> anyhow::Result<()> {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3600000\n";
    for file in ["config.json", "model.safetensors"] {
        let model = copy("qwen3")?;
        std::fs::write(model.path().join(file), pointer)?;
        let words = [file, "git-lfs pointer", "`git lfs pull`"];
        refused_by_nodes(model.path(), &words)?;
        refused_by_clients(model.path(), &words)?;
    }
    let model = copy("qwen3")?;
    std::fs::rename(model.path().join("model.safetensors"), model.path().join("pytorch_model.bin"))?;
    let words = ["pytorch_model.bin", "pickles", "save_pretrained"];
    refused_by_nodes(model.path(), &words)?;
    refused_by_clients(model.path(), &words)?;

    let model = copy("qwen3")?;
    std::fs::write(model.path().join("tokenizer.json"), pointer)?;
    let generate = ["generate", "--peers", PEER, "--prompt", "the", "--max-new-tokens", "1"];
    let output = Tune::bare(&generate)?.path("--model", model.path()).output()?;
    says(
        "generate",
        &String::from_utf8_lossy(&output.stderr),
        &["tokenizer.json is a git-lfs pointer", "`git lfs pull`"],
    );
    Ok(())
}
