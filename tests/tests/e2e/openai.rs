//! The official `openai` client uses a tuned adapter while others keep the server busy.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm};
use serde_json::{Value, json};

use crate::serve::template;

/// A Python that has OpenAI's and Anthropic's clients, in the target directory; `None`, with a message, where there is no Python.
pub(crate) fn python() -> anyhow::Result<Option<PathBuf>> {
    python_with("openai-venv", "anthropic, openai", "requirements.txt")
}

/// A Python in the target directory that can import `modules`, which a file of `tests/python` has the packages of; `None`, with a message,
/// where there is no Python.
pub(crate) fn python_with(venv: &str, modules: &str, requirements: &str) -> anyhow::Result<Option<PathBuf>> {
    // Tests run side by side, and one environment is made once.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("the test has no target directory")?;
    let venv = target.join(venv);
    let python = venv.join("bin/python");
    let import = format!("import {modules}");
    let has =
        |python: &Path| Command::new(python).args(["-c", &import]).output().is_ok_and(|output| output.status.success());
    if has(&python) {
        return Ok(Some(python));
    }
    let usable = Command::new("python3").args(["-c", "import venv, ensurepip"]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        // Past the capture of a test's output: a test that did not run should not look like one that did.
        let _ = writeln!(std::io::stderr(), "skipped: {modules} need python3 with venv, which is not installed here");
        return Ok(None);
    }
    let run = |command: &mut Command| {
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        anyhow::Ok(())
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let requirements = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python").join(requirements);
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements))?;
    Ok(Some(python))
}

/// What a script of `tests/python` saw, which it prints as JSON.
pub(crate) fn seen(python: &Path, script: &str, arguments: &[&str]) -> anyhow::Result<Value> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
    let output = Command::new(python).arg(script).args(arguments).env("NO_PROXY", "127.0.0.1").output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The client speaks for itself: its script ends with an error if it sees anything else than it must.
#[test]
fn the_openai_client_gets_all_that_it_can_ask_for() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let template = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python/chat.jinja");
    let serve = swarm.tune("serve")?.path("--chat-template", &template);
    let api = ApiServer::start(serve.args(&["--tool-format", "hermes"]).env("PETALS_API_KEY", "a-secret"))?;
    let checks = seen(&python, "openai_requests.py", &[&format!("http://{}", api.address), "a-secret", "model"])?;
    assert!(checks.as_array().is_some_and(|checks| checks.len() > 10), "{checks}");
    api.stop()
}

#[test]
fn the_openai_client_streams_a_tuned_adapter_while_sixteen_other_requests_run() -> anyhow::Result<()> {
    let Some(python) = python()? else { return Ok(()) };
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let adapter = directory.path().join("tuned");
    let train = swarm.tune("train")?.args(&["--mode", "deep_ptune", "--prefix-len", "4", "--task", "causal-lm"]);
    let train = train.args(&["--steps", "5", "--batch-size", "2", "--lr", "0.1"]);
    train.path("--data", &Goldens::data("train-causal.jsonl")).path("--out", &adapter).events()?;

    let serve = swarm.tune("serve")?.args(&["--adapter", &format!("tuned={}", adapter.display())]);
    let api = ApiServer::start(serve.path("--chat-template", &template).env("PETALS_API_KEY", "a-secret"))?;
    let url = format!("http://{}/v1", api.address);
    let seen = seen(&python, "openai_client.py", &[&url, "a-secret", "model", "model:tuned"])?;
    assert_eq!(seen["failures"], json!([]));
    assert_eq!(seen["models"], json!(["model", "model:tuned"]));
    assert_eq!(seen["running"], 16, "all of the others were at it");
    assert!(
        seen["others"].as_array().is_some_and(|counts| counts.iter().all(|count| count.as_u64() > Some(0))),
        "{seen}"
    );
    let pieces: Vec<&str> = seen["pieces"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // The tuned model ends its answer early.
    assert!(pieces.len() > 3, "{pieces:?}");
    assert_eq!(seen["whole"], pieces.concat().as_str());
    assert_ne!(seen["whole"], seen["plain"], "the adapter changes the answer");
    let generate = swarm.tune("generate")?.path("--adapter", &adapter);
    let generate = generate.args(&["--prompt", "[user] the cat\n[assistant]", "--max-new-tokens", "48"]);
    let generated = generate.events()?.into_iter().find(|event| event["event"] == "generated").context("no text")?;
    assert_eq!(seen["whole"], generated["text"]);
    let tokens = generated["token_ids"].as_array().map(Vec::len);
    assert_eq!(seen["usage"]["completion_tokens"].as_u64().map(|count| count as usize), tokens);
    let scored = seen["scored"].as_array().context("no probabilities")?;
    assert!(scored.len() == 4 && scored.iter().all(|place| place[1].as_f64() < Some(0.0) && place[3] == 2), "{seen}");
    let vectors = seen["vectors"].as_array().context("no vectors")?;
    assert!(vectors.len() == 2 && vectors[0] == vectors[1] && vectors[0].as_u64() > Some(8), "{seen}");
    assert!(seen["packed"].as_f64().is_some_and(|difference| difference < 1e-6), "{seen}");
    let (finish, total) = (&seen["told"][0], &seen["told"][1]);
    assert!(finish == "stop" || total.as_u64() == Some(512), "cut to the model's positions: {seen}");
    let echo = seen["echo"][1].as_array().context("no list")?;
    assert!(seen["echo"][0] == "the cat" && echo.len() > 1 && echo[0].is_null() && echo[1].is_number(), "{seen}");
    assert_eq!(seen["errors"], json!(["NotFoundError", "BadRequestError", "AuthenticationError"]));
    api.stop()
}
