//! A swarm on one screen.

use std::time::{Duration, Instant};

use petals_e2e::{Goldens, Node, ProcessSwarm, Tune, send_signal};
use serde_json::Value;

/// A swarm with half of one model and all of another one.
fn two_models() -> anyhow::Result<(ProcessSwarm, [Node; 2])> {
    let (half, whole) = (Goldens::load("llama-gqa")?, Goldens::load("qwen3")?);
    let swarm = ProcessSwarm::start(&half.model(), &[])?;
    let first = swarm.spawn_server(&["--blocks", "0..2", "--model-name", "org/half"])?;
    first.event("ready")?;
    let whole = whole.model();
    let model = whole.to_str().unwrap_or_default();
    let serve = ["serve", "--model", model, "--device", "cpu", "--blocks", "0..4", "--peers", &swarm.bootstrap.address];
    let other = Node::start(&[&serve[..], &["--public-name", "the attic", "--model-name", "whole"]].concat())?;
    other.event("ready")?;
    Ok((swarm, [first, other]))
}

fn status(swarm: &ProcessSwarm, more: &[&str]) -> anyhow::Result<Tune> {
    // With `=`, because what follows `--peers` may be another peer.
    Ok(Tune::bare(&["status", &format!("--peers={}", swarm.bootstrap.address)])?.args(more))
}

#[test]
fn models_servers_and_what_is_missing_are_shown() -> anyhow::Result<()> {
    let (swarm, _servers) = two_models()?;
    // Records need a moment to reach others.
    let deadline = Instant::now() + Duration::from_secs(20);
    let shown = loop {
        let shown = status(&swarm, &[])?.events()?.remove(0);
        if shown["models"].as_array().map_or(0, Vec::len) == 2 || Instant::now() > deadline {
            break shown;
        }
    };
    let models = shown["models"].as_array().cloned().unwrap_or_default();
    let of =
        |name: &str| models.iter().find(|model| model["model"].as_str().unwrap_or_default().contains(name)).cloned();
    let (half, whole) = (of("half").unwrap_or_default(), of("whole").unwrap_or_default());
    assert_eq!((half["blocks"].as_u64(), &half["missing"]), (Some(4), &serde_json::json!(["2..4"])), "{shown}");
    let holders = serde_json::json!([{"blocks": "0..2", "servers": 1}, {"blocks": "2..4", "servers": 0}]);
    assert_eq!(half["holders"], holders);
    assert_eq!(
        (&whole["missing"], &whole["servers"][0]["public_name"]),
        (&serde_json::json!([]), &Value::from("the attic"))
    );
    assert_eq!(
        (&whole["servers"][0]["state"], &whole["servers"][0]["blocks"]),
        (&Value::from("online"), &Value::from("0..4"))
    );
    let text = String::from_utf8(status(&swarm, &[])?.output()?.stdout)?;
    assert!(text.contains("4 blocks, nobody serves 2..4") && text.contains("11.."), "{text}");
    assert!(text.contains("the attic") && text.contains("complete") && text.contains("tokens/s"), "{text}");
    let name = whole["model"].as_str().and_then(|model| model.split('@').next()).unwrap_or_default().to_owned();
    let one = status(&swarm, &[&name])?.events()?.remove(0);
    assert_eq!(one["models"].as_array().map(Vec::len), Some(1), "{one}");
    let (child, _) = status(&swarm, &["--watch", "500ms"])?.start("status")?;
    send_signal(child.id(), "INT")?;
    assert!(child.wait_with_output()?.status.success(), "Ctrl-C is how one stops to watch");
    Ok(())
}

#[test]
fn whoever_asks_for_a_model_without_servers_is_told_which_ones_there_are() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let swarm = ProcessSwarm::start(&Goldens::load("llama-gqa")?.model(), &[])?;
    let server = swarm.spawn_server(&["--blocks", "0..4", "--model-name", "org/ours"])?;
    server.event("ready")?;
    let peers = format!("--peers={}", swarm.bootstrap.address);
    let output = Tune::bare(&["route", &peers])?.path("--model", &goldens.model()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("the swarm serves org/ours@"), "{stderr}");
    // Those who wait are told as well, not only those who have given up.
    let generate =
        Tune::bare(&["generate", &peers, "--prompt", "the", "--max-new-tokens", "1", "--give-up-after", "8s"])?;
    let output = generate.path("--model", &goldens.model()).args(&["--json"]).output()?;
    let lines = String::from_utf8_lossy(&output.stdout);
    let told = lines.lines().filter(|line| line.contains("\"waiting\"") && line.contains("the swarm serves org/ours@"));
    assert_eq!(told.count(), 1, "{lines}");
    Ok(())
}

#[test]
fn a_name_that_a_terminal_would_obey_is_refused() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = goldens.model();
    let model = model.to_str().unwrap_or_default();
    let refused = Node::refused(&["serve", "--model", model, "--public-name", "a\u{1b}[2J"])?;
    assert!(refused.contains("--public-name") && refused.contains("cannot be shown"), "{refused}");
    Ok(())
}
