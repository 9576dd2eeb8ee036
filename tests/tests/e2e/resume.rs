//! `kill -9` of the trainer, and `--resume`.

use petals_e2e::{Goldens, ProcessSwarm, assert_curves_close, send_signal};

use crate::curves::training;

#[test]
fn a_killed_trainer_resumes_to_the_uninterrupted_curve() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let expected = goldens.numbers("curve.replace.seq-cls");
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    for (kill_at, save_every) in [(1, "1"), (6, "1"), (13, "4")] {
        let out = directory.path().join(format!("killed-at-{kill_at}"));
        let run = training(&swarm, &goldens, "replace", "seq-cls", &out)?.args(&["--save-every", save_every]);
        let (mut losses, finished) = run.watch(|event| event["step"] != kill_at)?;
        assert!(!finished);
        let again = training(&swarm, &goldens, "replace", "seq-cls", &out)?.args(&["--save-every", save_every]);
        let mut first = None;
        let (resumed, finished) = again.args(&["--resume"]).watch(|event| {
            first = first.or(event["step"].as_u64().filter(|_| event["event"] == "step"));
            true
        })?;
        assert!(finished);
        let first = first.unwrap_or_default() as usize;
        assert!(first >= 1 && first <= kill_at + 1, "resumed at step {first} after a kill at {kill_at}");
        losses.truncate(first - 1);
        losses.extend(resumed);
        assert_curves_close(&format!("killed at {kill_at}"), &losses, &expected, 1e-3);
    }
    Ok(())
}

#[test]
fn a_trainer_that_is_asked_to_stop_saves_its_last_step() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    for signal in ["INT", "TERM"] {
        let out = directory.path().join(signal);
        let run = || training(&swarm, &goldens, "add", "causal-lm", &out);
        let (mut losses, finished) = run()?.args(&["--save-every", "0"]).watch_with_id(|process, event| {
            if event["event"] == "step" && event["step"] == 2 {
                // A server that stands still keeps the trainer inside of a step until the signal arrives.
                let _ = swarm.servers[0].signal("STOP").and_then(|()| send_signal(process, signal));
            }
            true
        })?;
        swarm.servers[0].signal("CONT")?;
        assert!(!finished, "{signal}: 18 steps were left when the server stood still");
        assert!(out.join("adapter_model.safetensors").exists(), "{signal}: the adapter is saved too");
        losses.extend(run()?.args(&["--resume"]).losses()?);
        assert_curves_close(signal, &losses, &goldens.numbers("curve.add.causal-lm"), 1e-3);
    }
    Ok(())
}

#[test]
fn another_seed_is_not_resumed_silently() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("out");
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let run = training(&swarm, &goldens, "ptune", "seq-cls", &out)?.args(&["--save-every", "1"]);
    run.watch(|event| event["step"] != 2)?;
    let again = || training(&swarm, &goldens, "ptune", "seq-cls", &out);
    let output = again()?.args(&["--resume", "--seed", "5"]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--seed was 0, is now 5"), "{stderr}");
    let output = again()?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "an unfinished run is not overwritten: {stderr}");
    assert!(stderr.contains("--resume"), "{stderr}");
    Ok(())
}
