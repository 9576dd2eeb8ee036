//! What a user sees who makes mistakes, or stops a node.

use petals_e2e::{Goldens, Node, ProcessSwarm, Tune};

fn refused(tune: Tune, words: &[&str]) -> anyhow::Result<()> {
    let output = tune.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is missing in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ok(())
}

#[test]
fn bad_input_is_refused_by_name_with_status_2() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("bad.jsonl");
    std::fs::write(&data, "{\"text\": \"fine\", \"label\": 1}\n{\"text\": 3}\n")?;
    let data = data.to_str().unwrap_or_default();
    let peers = ["--peers", "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj"];
    let train = |model: &str, data: &str, more: &[&str]| {
        let out = directory.path().join("out");
        let base = ["train", "--model", model, "--mode", "ptune", "--prefix-len", "4", "--task", "seq-cls"];
        let tune = Tune::bare(&base)?.args(&["--data", data, "--out", out.to_str().unwrap_or_default()]);
        anyhow::Ok(tune.args(more))
    };
    refused(train(model, data, &peers)?, &["bad.jsonl", "2"])?;
    refused(train(model, "/nonexistent.jsonl", &peers)?, &["/nonexistent.jsonl"])?;
    refused(train("/nonexistent", data, &peers)?, &["/nonexistent"])?;
    refused(train(model, data, &["--peers", "localhost:80"])?, &["localhost:80"])?;
    refused(train(model, data, &["--peers", "/ip4/127.0.0.1/tcp/9"])?, &["/p2p/"])?;
    refused(train(model, data, &["--lr", "fast"])?, &["--lr", "fast"])?;
    Ok(())
}

#[test]
fn flags_of_generate_that_contradict_each_other_are_refused() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = goldens.model();
    let peers = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    let generate = |more: &[&str]| {
        let base = ["generate", "--peers", peers, "--prompt", "the", "--max-new-tokens", "4"];
        anyhow::Ok(Tune::bare(&base)?.path("--model", &model).args(more))
    };
    refused(generate(&["--beams", "2", "--temperature", "1"])?, &["--beams", "--temperature"])?;
    refused(generate(&["--length-penalty", "2"])?, &["--beams"])?;
    refused(generate(&["--num-return", "2"])?, &["--num-return", "--temperature"])?;
    refused(generate(&["--min-p", "1.5"])?, &["--min-p", "1.5"])?;
    refused(generate(&["--repetition-penalty", "0"])?, &["--repetition-penalty"])?;
    refused(generate(&["--stop", ""])?, &["--stop", "empty"])?;
    refused(generate(&["--draft-model", "/nonexistent"])?, &["/nonexistent"])?;
    // A model whose tokenizer has one token more.
    let other = tempfile::tempdir()?;
    for file in std::fs::read_dir(&model)? {
        let file = file?;
        std::fs::copy(file.path(), other.path().join(file.file_name()))?;
    }
    let path = other.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let extra = serde_json::json!({ "id": 320, "content": "<extra>", "single_word": false, "lstrip": false,
                                    "rstrip": false, "normalized": false, "special": true });
    tokenizer["added_tokens"].as_array_mut().into_iter().for_each(|tokens| tokens.push(extra.clone()));
    std::fs::write(&path, tokenizer.to_string())?;
    refused(generate(&["--draft-model", other.path().to_str().unwrap_or_default()])?, &["--draft-model", "tokenizer"])?;
    Ok(())
}

#[test]
fn an_unreachable_swarm_is_an_error_that_names_the_address() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let address = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    let output = Tune::bare(&["route", "--peers", address])?.path("--model", &goldens.model()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("127.0.0.1"), "{stderr}");
    Ok(())
}

#[test]
fn a_route_names_every_hop_and_a_hole_names_its_blocks() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let events = swarm.tune("route")?.events()?;
    let route = events.iter().find(|event| event["event"] == "route").cloned().unwrap_or_default();
    let hops: Vec<&str> = route["hops"].as_array().into_iter().flatten().filter_map(|h| h["blocks"].as_str()).collect();
    assert_eq!(hops, ["0..2", "2..4"]);
    swarm.servers[1].signal("TERM")?;
    swarm.servers[1].event("stopped")?;
    assert_eq!(swarm.servers[1].wait()?, 0);
    let output = swarm.tune("route")?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("2..4"), "{stderr}");
    Ok(())
}

#[test]
fn a_server_without_blocks_takes_what_is_served_worst() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2"])?;
    let server = swarm.spawn_server(&[])?;
    // The whole model fits into memory, so there is nothing to choose but all of it.
    assert_eq!(server.event("ready")?["blocks"], "0..4");
    Ok(())
}

#[test]
fn another_model_under_the_same_name_is_never_joined() -> anyhow::Result<()> {
    let (one, other) = (Goldens::load("llama-gqa")?, Goldens::load("qwen3")?);
    let swarm = ProcessSwarm::start(&one.model(), &["0..4"])?;
    let peers = ["route", "--peers", &swarm.bootstrap.address];
    let output = Tune::bare(&peers)?.path("--model", &other.model()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("0..4"), "{stderr}");
    Ok(())
}

#[test]
fn a_restarted_node_keeps_its_identity() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("node.key");
    let key = key.to_str().unwrap_or_default();
    let id = |node: &Node| node.address.rsplit('/').next().map(str::to_owned);
    let first = id(&Node::start(&["bootstrap", "--identity", key])?);
    assert!(first.is_some());
    assert_eq!(first, id(&Node::start(&["bootstrap", "--identity", key])?));
    Ok(())
}
