//! Servers whose blocks are divided among several devices, and what is said of devices.

use std::path::Path;

use petals_e2e::{Goldens, Node, ProcessSwarm, Tune, assert_curves_close};
use petals_model::Device;
use serde_json::{Value, json};

use crate::curves::training;
use crate::vulkan::talk;

/// A server of all blocks on these devices, whose speeds nobody knows from an earlier start.
fn swarm(goldens: &Goldens, devices: &str, cache: &Path) -> anyhow::Result<ProcessSwarm> {
    let mut swarm = ProcessSwarm::start_with_device(&goldens.model(), devices, &[])?;
    let mut server = swarm.spawn_server(&["--blocks", "0..4", "--cache-dir", cache.to_str().unwrap_or_default()])?;
    server.ready = server.event("ready")?;
    swarm.servers.push(server);
    Ok(swarm)
}

#[test]
fn a_divided_server_trains_with_the_same_losses() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let directory = tempfile::tempdir()?;
    let run = |devices: &str, mode: &str, task: &str| -> anyhow::Result<(Vec<f64>, String)> {
        let out = directory.path().join(format!("{devices}-{mode}"));
        let swarm = swarm(&goldens, devices, &directory.path().join(format!("{devices}-{mode}-cache")))?;
        let losses = training(&swarm, &goldens, mode, task, &out)?.losses()?;
        Ok((losses, swarm.servers[0].ready["device"].as_str().unwrap_or_default().to_owned()))
    };
    for (mode, task) in [("replace", "seq-cls"), ("add", "causal-lm")] {
        let (expected, device) = run("cpu", mode, task)?;
        assert_eq!(device, "cpu");
        let (losses, device) = run("cpu,cpu", mode, task)?;
        assert_eq!(device, "cpu (0..2), cpu (2..4)");
        assert_eq!(losses, expected, "{mode}: nothing tells the processor twice from once");
    }
    match "vulkan".parse::<Device>() {
        Ok(vulkan) if !vulkan.is_gpu() => {
            let (losses, device) = run("vulkan,cpu", "replace", "seq-cls")?;
            assert_eq!(device, format!("{vulkan} (0..2), cpu (2..4)"));
            assert_curves_close("two kinds", &losses, &goldens.numbers("curve.replace.seq-cls"), 1e-3);
        }
        // A card would take all of so small a model.
        Ok(vulkan) => println!("skipped: {vulkan} is a card"),
        Err(error) => println!("skipped: {error}"),
    }
    Ok(())
}

#[test]
fn a_divided_server_chats_with_the_same_words() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let expected = talk(&goldens, &swarm(&goldens, "cpu", directory.path())?)?;
    assert_eq!(expected.len(), 3, "{expected:?}");
    let divided = swarm(&goldens, "cpu,cpu", directory.path())?;
    assert_eq!(talk(&goldens, &divided)?, expected);
    // One node with one announcement: what it computes on is what it was told.
    let status = Tune::bare(&["status", &format!("--peers={}", divided.bootstrap.address)])?.events()?;
    let servers = status[0]["models"][0]["servers"].as_array().cloned().unwrap_or_default();
    let told: Vec<_> = servers.iter().map(|server| (&server["device"], &server["blocks"])).collect();
    assert_eq!(told, [(&json!("cpu,cpu"), &json!("0..4"))], "{status:?}");
    Ok(())
}

#[test]
fn devices_are_listed_with_what_is_missing_and_how_to_have_it() -> anyhow::Result<()> {
    let events = Node::run(&["devices"])?;
    let cpu = events.iter().find(|event| event["name"] == "cpu").expect("the processor");
    assert_eq!((&cpu["event"], &cpu["kind"]), (&json!("device"), &json!("processor")));
    assert!(
        cpu["free_bytes"].as_u64().is_some_and(|free| free > 0 && cpu["total_bytes"].as_u64() > Some(free)),
        "{cpu}"
    );
    for runtime in ["CUDA", "Vulkan"] {
        let named = |event: &&Value| event["runtime"].as_str().is_some_and(|name| name.starts_with(runtime));
        let found: Vec<&Value> = events.iter().filter(named).collect();
        assert!(!found.is_empty(), "{runtime} is neither there nor missing: {events:?}");
        for event in found.iter().filter(|event| event["event"] == "no_device") {
            let said = |key: &str| event[key].as_str().is_some_and(|text| !text.is_empty());
            assert!(said("cause") && said("remedy"), "{event}");
        }
    }
    let output = Node::output(&["devices"])?;
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout)?;
    assert!(text.starts_with("cpu       processor  "), "{text}");
    Ok(())
}

#[test]
fn impossible_lists_of_devices_are_refused_with_what_to_do() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let model = goldens.model();
    let serve = |device: &str| {
        Node::refused(&["serve", "--model", model.to_str().unwrap_or_default(), "--blocks", "0..4", "--device", device])
    };
    let alone = serve("cpu,auto")?;
    assert!(alone.contains("auto is one device by itself") && alone.contains("cuda:0,cpu"), "{alone}");
    let unknown = serve("cpu,gpu")?;
    assert!(unknown.contains("`gpu` is not a device"), "{unknown}");
    Ok(())
}
