//! Servers whose blocks are divided among several devices, and what is said of devices.

use petals_e2e::{Goldens, Node, ProcessSwarm, assert_curves_close};
use petals_model::Device;
use serde_json::{Value, json};

use crate::curves::training;
use crate::vulkan::talk;

/// The processor twice, which nothing tells from once, and beside a Vulkan device where there is one.
fn divisions() -> Vec<(&'static str, f64)> {
    let mut all = vec![("cpu,cpu", 0.0)];
    match "vulkan".parse::<Device>() {
        Ok(_) => all.push(("vulkan,cpu", 1e-3)),
        Err(error) => println!("without a division among kinds of devices: {error}"),
    }
    all
}

#[test]
fn a_divided_server_trains_with_the_same_losses() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let directory = tempfile::tempdir()?;
    let run = |device: &str, mode: &str, task: &str| -> anyhow::Result<(Vec<f64>, Value)> {
        let swarm = ProcessSwarm::start_with_device(&goldens.model(), device, &["0..4"])?;
        let out = directory.path().join(format!("{device}-{mode}"));
        let losses = training(&swarm, &goldens, mode, task, &out)?.losses()?;
        Ok((losses, swarm.servers[0].ready.clone()))
    };
    for (mode, task) in [("replace", "seq-cls"), ("add", "causal-lm")] {
        let (expected, ready) = run("cpu", mode, task)?;
        assert_eq!(ready["device"], "cpu");
        for (device, tolerance) in divisions() {
            let (losses, ready) = run(device, mode, task)?;
            if tolerance == 0.0 {
                assert_eq!(losses, expected, "{mode} on {device}");
                assert_eq!((&ready["device"], &ready["blocks"]), (&json!("cpu (0..2), cpu (2..4)"), &json!("0..4")));
            }
            assert_curves_close(mode, &losses, &goldens.numbers(&format!("curve.{mode}.{task}")), 1e-3);
        }
    }
    Ok(())
}

#[test]
fn a_divided_server_chats_with_the_same_words() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = |device: &str| ProcessSwarm::start_with_device(&goldens.model(), device, &["0..4"]);
    let expected = talk(&goldens, &swarm("cpu")?)?;
    assert_eq!(expected.len(), 3, "{expected:?}");
    let divided = swarm("cpu,cpu")?;
    assert_eq!(talk(&goldens, &divided)?, expected);
    // One node with one announcement: what it computes on is what it was told.
    let status = divided.tune("status")?.args(&["--json"]).events()?;
    let text = serde_json::to_string(&status)?;
    assert!(text.contains("\"cpu,cpu\""), "{text}");
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
