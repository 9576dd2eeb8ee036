//! Models by their names: nodes and clients that fetch what they need from a hub on loopback.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use petals_e2e::{Fault, Goldens, HubServer, Node, ProcessSwarm, Tune, write_shards};
use serde_json::Value;

const MODEL: &str = "org/tiny";

/// A hub with the model of `llama-gqa` in six files, whose blocks are in the second to the fifth.
fn hub(model: &Path) -> anyhow::Result<HubServer> {
    anyhow::ensure!(write_shards(&Goldens::load("llama-gqa")?.model(), model)? == 6, "other shards than expected");
    let server = HubServer::start()?;
    server.publish(MODEL, "main", model)?;
    Ok(server)
}

/// What a machine of its own has in its environment.
fn machine<'a>(endpoint: &'a str, home: &'a Path) -> anyhow::Result<[(&'a str, &'a str); 3]> {
    let home = home.to_str().context("a path that is not UTF-8")?;
    Ok([("HF_ENDPOINT", endpoint), ("HF_HOME", home), ("HF_HUB_OFFLINE", "")])
}

/// The weights that a hub was asked for, by the numbers of their files.
fn shards(server: &HubServer) -> Vec<u32> {
    let files: BTreeSet<String> = server.files_asked();
    files.iter().filter_map(|file| file.strip_prefix("model-")?.get(..5)?.parse().ok()).collect()
}

fn at(mut tune: Tune, environment: &[(&str, &str)]) -> Tune {
    for (name, value) in environment {
        tune = tune.env(name, value);
    }
    tune
}

#[test]
fn servers_and_a_client_know_a_model_by_its_name_and_fetch_their_parts() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = tempfile::tempdir()?;
    let server = hub(model.path())?;
    let endpoint = server.endpoint();
    let homes = [tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?];
    let [first, second, client] = [0, 1, 2].map(|number| homes[number].path());

    let prompt = goldens.value("prompt_text").as_str().unwrap_or_default();
    let arguments = ["--prompt", prompt, "--max-new-tokens", "24"];
    let generated = |events: Vec<Value>| -> anyhow::Result<Value> {
        let text = events.iter().find(|event| event["event"] == "generated").context("no text")?;
        Ok(text["token_ids"].clone())
    };
    let expected = {
        let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
        generated(swarm.tune("generate")?.args(&arguments).events()?)?
    };

    let bootstrap = Node::start(&["bootstrap"])?;
    let peers = ["--device", "cpu", "--peers", &bootstrap.address];
    let serve = |home: &Path, model: &str, more: &[&str]| {
        Node::start_in(&machine(&endpoint, home)?, &[&["serve", "--model", model], &peers[..], more].concat())
    };
    let one = serve(first, MODEL, &["--blocks", "0..2"])?;
    let ready = one.event("ready")?;
    assert_eq!(shards(&server), [2, 3], "the first server's blocks alone");
    server.forget();
    let pinned = format!("{MODEL}@main");
    let two = serve(second, &pinned, &["--blocks", "2..4"])?;
    assert_eq!(two.event("ready")?["model"], ready["model"]);
    assert_eq!(shards(&server), [4, 5]);
    assert!(ready["model"].as_str().is_some_and(|id| id.starts_with("org/tiny@")), "{ready}");

    server.forget();
    let environment = machine(&endpoint, client)?;
    let tune = |command: &str| -> anyhow::Result<Tune> {
        let tune = Tune::bare(&[command, "--model", MODEL])?;
        Ok(at(tune, &environment).args(&["--peers", &bootstrap.address]))
    };
    let events = tune("generate")?.args(&arguments).events()?;
    let states: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "download")
        .filter_map(|event| event["state"].as_str())
        .collect();
    assert!(states.first() == Some(&"coming") && states.contains(&"done"), "{states:?}");
    assert_eq!(shards(&server), [1, 6], "embeddings, norm and head");
    assert_eq!(generated(events)?, expected);
    assert!(!server.files_asked().iter().any(|file| !file.starts_with("model") && !file.ends_with(".json")));

    // A second command has all of it, with a hub and without. Without --json nothing but the text is on stdout.
    server.forget();
    let again = at(tune("generate")?, &[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert_eq!(generated(again.args(&arguments).events()?)?, expected);
    assert!(server.log().is_empty());

    // A draft model runs here, so all of it is fetched. What is trained names the model, for whoever loads it elsewhere.
    let drafted = tune("generate")?.args(&arguments).args(&["--draft-model", MODEL]).events()?;
    assert_eq!(generated(drafted)?, expected);
    assert_eq!(shards(&server), [2, 3, 4, 5], "what the client did not have");
    let out = homes[2].path().join("adapter");
    let train = ["--mode", "ptune", "--prefix-len", "2", "--task", "causal-lm", "--steps", "1", "--batch-size", "2"];
    tune("train")?.args(&train).path("--data", &Goldens::data("train-causal.jsonl")).path("--out", &out).events()?;
    let adapter: Value = serde_json::from_slice(&std::fs::read(out.join("adapter_config.json"))?)?;
    assert_eq!(adapter["base_model_name_or_path"], MODEL);

    // A copy of the model on this machine serves the same model under its name, and so does its folder in the cache.
    let local = goldens.model();
    let local = serve(second, local.to_str().unwrap_or_default(), &["--blocks", "0..1", "--model-name", MODEL])?;
    assert_eq!(local.event("ready")?["model"], ready["model"]);
    let snapshots = first.join("hub/models--org--tiny/snapshots");
    let snapshot = std::fs::read_dir(snapshots)?.next().context("no snapshot")??.path();
    let cached = serve(second, snapshot.to_str().unwrap_or_default(), &["--blocks", "0..2"])?;
    assert_eq!(cached.event("ready")?["model"], ready["model"]);
    Ok(())
}

#[test]
fn a_server_chooses_its_blocks_before_it_fetches_them() -> anyhow::Result<()> {
    let model = tempfile::tempdir()?;
    let server = hub(model.path())?;
    let (endpoint, home) = (server.endpoint(), tempfile::tempdir()?);
    let environment = machine(&endpoint, home.path())?;
    let bootstrap = Node::start(&["bootstrap"])?;
    let base = ["serve", "--model", MODEL, "--device", "cpu", "--peers", &bootstrap.address];
    let fixed = Node::start_in(&environment, &[&base[..], &["--blocks", "0..3"]].concat())?;
    fixed.event("ready")?;
    server.forget();
    let chosen = Node::start_in(&environment, &[&base[..], &["--num-blocks", "1"]].concat())?;
    assert_eq!(chosen.event("ready")?["blocks"], "3..4");
    assert_eq!(shards(&server), [5]);
    Ok(())
}

#[test]
fn a_killed_download_goes_on_with_the_next_start() -> anyhow::Result<()> {
    let model = tempfile::tempdir()?;
    let server = hub(model.path())?;
    let (endpoint, home) = (server.endpoint(), tempfile::tempdir()?);
    let environment = machine(&endpoint, home.path())?;
    let shard = "model-00002-of-00006.safetensors";
    let wait = std::time::Duration::from_secs(60);
    server.fault(&format!("store {shard}"), Fault::Stall(1500, wait));
    let serve = || Node::start_in(&environment, &["serve", "--model", MODEL, "--device", "cpu", "--blocks", "0..1"]);
    let mut node = serve()?;
    // The first bytes have come when a part of them is in the cache.
    let blobs = home.path().join("hub/models--org--tiny/blobs");
    let part = || {
        let entries = std::fs::read_dir(&blobs).ok()?.flatten().map(|entry| entry.path());
        entries.into_iter().find(|path| path.extension().is_some_and(|end| end == "incomplete"))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while part().and_then(|part| part.metadata().ok()).map(|of| of.len()) != Some(1500) {
        anyhow::ensure!(std::time::Instant::now() < deadline, "the part never came: {:?}", part());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    node.kill()?;
    server.forget();
    let node = serve()?;
    assert_eq!(node.event("ready")?["blocks"], "0..1");
    let ranges: Vec<_> = server
        .log()
        .into_iter()
        .filter(|asked| asked.store && asked.file.as_deref() == Some(shard))
        .map(|asked| asked.range)
        .collect();
    assert_eq!(ranges, [Some("bytes=1500-".to_owned())]);
    let (hash, published) = (blobs.read_dir()?.count(), std::fs::read(model.path().join(shard))?);
    let snapshot =
        home.path().join("hub/models--org--tiny/snapshots").read_dir()?.next().context("no snapshot")??.path();
    assert!(hash > 0 && std::fs::read(snapshot.join(shard))? == published, "other bytes than were published");
    Ok(())
}

#[test]
fn what_the_hub_refuses_ends_the_program_with_what_to_do() -> anyhow::Result<()> {
    let model = tempfile::tempdir()?;
    let server = hub(model.path())?;
    server.gate(MODEL);
    server.account("hf_good", true);
    server.account("hf_stranger", false);
    let (endpoint, home) = (server.endpoint(), tempfile::tempdir()?);
    let environment = machine(&endpoint, home.path())?;
    let peers = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    let refused = |model: &str, more: (&str, &str), words: &[&str]| -> anyhow::Result<()> {
        let tune = at(Tune::bare(&["route", "--model", model, "--peers", peers])?, &environment).env(more.0, more.1);
        let node = Node::output_in(
            &[&environment[..], &[more]].concat(),
            &["serve", "--model", model, "--listen", "/ip4/127.0.0.1/tcp/0"],
        )?;
        for output in [tune.output()?, node] {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            for word in words {
                assert!(stderr.contains(word), "`{word}` is missing in: {stderr}");
            }
            assert!(!stderr.contains("panicked") && !stderr.contains("hf_"), "{stderr}");
        }
        Ok(())
    };
    let page = format!("{endpoint}/{MODEL}");
    refused(MODEL, ("HF_TOKEN", ""), &["401", &page, "HF_TOKEN"])?;
    refused(MODEL, ("HF_TOKEN", "hf_stranger"), &["403", "accept its conditions", &page])?;
    refused("org/tinny", ("HF_TOKEN", "hf_good"), &["no model org/tinny", "no directory"])?;
    refused("org/tiny@v9", ("HF_TOKEN", "hf_good"), &["no revision `v9`"])?;
    refused(MODEL, ("HF_HUB_OFFLINE", "1"), &["HF_HUB_OFFLINE", "revision main"])?;
    refused(MODEL, ("HF_ENDPOINT", "huggingface.co"), &["HF_ENDPOINT", "https://huggingface.co"])?;
    // The token may lie where `hf auth login` puts it.
    std::fs::write(home.path().join("token"), "hf_good\n")?;
    let doctor = Node::output_in(&environment, &["doctor", "--model", MODEL, "--listen", "/ip4/127.0.0.1/tcp/0"])?;
    let stdout = String::from_utf8_lossy(&doctor.stdout);
    assert!(stdout.contains("4 blocks in") && stdout.contains("6 of its 6 files of weights are not here"), "{stdout}");
    assert_eq!(shards(&server), [0; 0], "doctor fetches no weights");
    Ok(())
}

#[test]
fn what_a_running_server_uses_is_not_removed_for_others() -> anyhow::Result<()> {
    let model = tempfile::tempdir()?;
    let server = hub(model.path())?;
    server.publish("org/second", "main", model.path())?;
    let (endpoint, home) = (server.endpoint(), tempfile::tempdir()?);
    let environment = machine(&endpoint, home.path())?;
    let mut node = Node::start_in(&environment, &["serve", "--model", MODEL, "--device", "cpu", "--blocks", "0..2"])?;
    node.event("ready")?;
    let files = ["config.json", "model.safetensors.index.json", "model-00002-of-00006.safetensors"];
    let sizes = files.iter().map(|file| std::fs::metadata(model.path().join(file)).map(|of| of.len()));
    let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
    // Room for what the server has, and for one block more.
    let most = (sizes.iter().sum::<u64>() + 2 * sizes[2] + sizes[2] / 2).to_string();
    let bench = |blocks: &str| {
        let base = ["bench", "forward", "--model", "org/second", "--device", "cpu", "--repeat", "1", "--length", "8"];
        Node::output_in(&environment, &[&base[..], &["--blocks", blocks, "--max-disk", &most]].concat())
    };
    let refused = bench("0..2")?;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && stderr.contains("--max-disk") && stderr.contains("are in use"), "{stderr}");
    let cached = || -> anyhow::Result<usize> {
        let snapshot =
            home.path().join("hub/models--org--tiny/snapshots").read_dir()?.next().context("no snapshot")??;
        Ok(snapshot.path().read_dir()?.flatten().filter(|entry| entry.path().exists()).count())
    };
    assert_eq!(cached()?, 4, "configuration, index and two blocks");
    node.kill()?;
    let done = bench("0..2")?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(cached()? < 4);
    Ok(())
}
