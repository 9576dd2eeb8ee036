//! Servers that compute by Vulkan: on a machine without a GPU on Mesa's software device, if it is installed.

use anyhow::Context;
use petals_e2e::{Goldens, Node, ProcessSwarm, assert_curves_close};
use petals_model::Device;
use serde_json::Value;

use crate::curves::training;
use crate::serve::template;

/// Whether there is a device; says why not.
fn has_vulkan() -> bool {
    match "vulkan".parse::<Device>() {
        Ok(device) => {
            println!("computing on {device}");
            true
        }
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

#[test]
fn a_training_run_on_vulkan_has_the_recorded_losses() -> anyhow::Result<()> {
    if !has_vulkan() {
        return Ok(());
    }
    let goldens = Goldens::load("qwen3")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start_with_device(&goldens.model(), "vulkan", &["0..2", "2..4"])?;
    assert!(swarm.servers[0].ready["device"].as_str().is_some_and(|device| device.starts_with("vulkan:")));
    for (mode, task) in [("replace", "seq-cls"), ("add", "causal-lm")] {
        let losses = training(&swarm, &goldens, mode, task, &directory.path().join(mode))?.losses()?;
        assert_curves_close(mode, &losses, &goldens.numbers(&format!("curve.{mode}.{task}")), 1e-3);
    }
    Ok(())
}

/// What a chat of two turns, one with an adapter and one without, is answered.
pub(crate) fn talk(goldens: &Goldens, swarm: &ProcessSwarm) -> anyhow::Result<Vec<Value>> {
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let adapter = format!("deep={}", goldens.path("init-replace").display());
    let chat =
        swarm.tune("chat")?.args(&["--adapter", &adapter, "--temperature", "0", "--max-new-tokens", "12", "--json"]);
    // A second turn goes on with what the servers keep; the third begins anew without the adapter.
    let output =
        chat.path("--chat-template", &template).output_with("the cat\nagain\n/adapter none\n/reset\na dog\n")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{stderr}");
    // Compiling kernels takes the device longer than a silence lasts that clients bear: what they say of that is no answer.
    let events = String::from_utf8(output.stdout)?;
    let events = events.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    Ok(events.into_iter().filter(|event| event["event"] == "answer").map(|event| event["text"].clone()).collect())
}

#[test]
fn a_chat_through_vulkan_and_the_cpu_is_that_of_the_cpu() -> anyhow::Result<()> {
    if !has_vulkan() {
        return Ok(());
    }
    let goldens = Goldens::load("llama-gqa")?;
    let on_cpu = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let expected = talk(&goldens, &on_cpu)?;
    assert_eq!(expected.len(), 3, "{expected:?}");
    let swarm = ProcessSwarm::start_with_device(&goldens.model(), "vulkan", &["0..2"])?;
    let (model, peers) = (goldens.model(), &swarm.bootstrap.address);
    let model = model.to_str().context("a path that is not UTF-8")?;
    let rest = Node::start(&["serve", "--model", model, "--device", "cpu", "--peers", peers, "--blocks", "2..4"])?;
    rest.event("ready")?;
    assert_eq!(talk(&goldens, &swarm)?, expected);
    Ok(())
}

#[test]
fn a_server_on_vulkan_that_is_killed_changes_no_loss() -> anyhow::Result<()> {
    if !has_vulkan() {
        return Ok(());
    }
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let mut swarm = ProcessSwarm::start_with_device(&goldens.model(), "vulkan", &["0..4", "0..2", "2..4"])?;
    let run = training(&swarm, &goldens, "replace", "causal-lm", &directory.path().join("adapter"))?;
    let mut killed = false;
    let (losses, finished) = run.watch(|event| {
        if !killed && event["event"] == "step" && event["step"].as_u64() == Some(5) {
            killed = swarm.servers[0].kill().is_ok();
        }
        true
    })?;
    assert!(finished && killed);
    assert_curves_close("losses", &losses, &goldens.numbers("curve.replace.causal-lm"), 1e-3);
    Ok(())
}
