//! A libp2p implementation that is not ours uses the directory.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use petals_e2e::{Goldens, Node};
use serde_json::Value;

fn works(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Runs `providers.mjs`; `None`, with a message, where there is no Node.
fn providers(address: &str, model: &str, block: u32) -> anyhow::Result<Option<Value>> {
    if !(works("node") && works("npm")) {
        // Past the capture of a test's output: a test that did not run should not look like one that did.
        let _ = writeln!(std::io::stderr(), "skipped: js-libp2p needs node and npm, which are not installed here");
        return Ok(None);
    }
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("js");
    if !directory.join("node_modules/libp2p").exists() {
        let output = Command::new("npm").arg("ci").current_dir(&directory).output()?;
        anyhow::ensure!(output.status.success(), "npm ci: {}", String::from_utf8_lossy(&output.stderr));
    }
    let script = ["providers.mjs", address, model, &block.to_string()];
    let output = Command::new("node").args(script).current_dir(&directory).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(Some(serde_json::from_str(&text).with_context(|| format!("stdout had {text:?}"))?))
}

#[test]
fn js_libp2p_finds_the_providers_of_a_block() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let bootstrap = Node::start(&["bootstrap"])?;
    let model = goldens.model();
    let model = model.to_str().context("the path is not text")?;
    let serve = ["serve", "--model", model, "--device", "cpu", "--blocks", "0..2", "--peers", &bootstrap.address];
    let server = Node::start(&serve)?;
    let ready = server.event("ready")?;
    let id = ready["model"].as_str().context("no model")?;
    let server_id = server.address.rsplit('/').next().context("no peer id")?;

    // The announcement is on its way to the bootstrap node.
    let mut found = Value::Null;
    for _ in 0..10 {
        let Some(answer) = providers(&bootstrap.address, id, 1)? else { return Ok(()) };
        found = answer;
        if found["providers"] != serde_json::json!([]) {
            break;
        }
    }
    assert_eq!(found["providers"], serde_json::json!([server_id]), "{found}");
    assert_eq!(found["speaksKad"], true, "{found}");
    assert!(found["agent"].as_str().is_some_and(|agent| agent.starts_with("petals-rs/")), "{found}");
    let Some(none) = providers(&bootstrap.address, id, 3)? else { return Ok(()) };
    assert_eq!(none["providers"], serde_json::json!([]), "a block that nobody serves");
    Ok(())
}
