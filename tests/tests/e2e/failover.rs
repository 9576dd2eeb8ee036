//! Servers that die in the middle of a run.

use std::time::Duration;

use petals_client::{PassInput, SequenceConfig, SequenceError};
use petals_e2e::{Goldens, LocalSwarm, ProcessSwarm, assert_close, assert_curves_close};
use petals_node::ExecutorConfig;

use crate::curves::training;

#[test]
fn a_server_killed_at_any_step_changes_no_loss() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    for (mode, task, kill_at) in [("replace", "causal-lm", 3), ("add", "seq-cls", 7), ("ptune", "causal-lm", 12)] {
        let expected = goldens.numbers(&format!("curve.{mode}.{task}"));
        let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4", "0..3", "1..4"])?;
        let out = directory.path().join(mode);
        let run = training(&swarm, &goldens, mode, task, &out)?;
        let mut killed = 0;
        let (losses, finished) = run.watch(|event| {
            // Two of four servers die, one after the other; the other two still hold every block.
            if event["event"] == "step" && [kill_at, kill_at + 3].contains(&event["step"].as_u64().unwrap_or(0)) {
                let _ = swarm.servers[killed].kill();
                killed += 1;
            }
            true
        })?;
        assert!(finished && killed == 2, "{mode}: finished {finished}, killed {killed}");
        // The goldens were computed by another program, the fault-free run by this one is as close to them.
        assert_curves_close(&format!("{mode}, {task}"), &losses, &expected, 1e-3);
        let free_swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
        let free = training(&free_swarm, &goldens, mode, task, &directory.path().join(format!("{mode}-free")))?;
        assert_curves_close(&format!("{mode}, {task}, beside the fault-free run"), &losses, &free.losses()?, 1e-5);
    }
    Ok(())
}

/// Kills a server between the forward and the backward of one pass: the stash is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_lost_between_forward_and_backward_is_replayed_by_several() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let mut swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
    let input = crate::misbehaving::input(&goldens, &swarm)?;
    let sequence = swarm.sequence(SequenceConfig::default());
    let grad = vec![0.01; 2 * swarm.hidden];
    let (_, trace) = sequence.forward(input.clone(), true).await?;
    let expected = sequence.backward(trace, grad.clone()).await?;

    let (_, trace) = sequence.forward(input, true).await?;
    assert_eq!(trace.hops().count(), 1, "there is one server with everything");
    for span in ["0..2", "2..4"] {
        swarm.add_server(&goldens.model(), span).await?;
    }
    // Known to the client's node before the only other node that knows them is gone.
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 || swarm.client.connected_peers().len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    swarm.servers.remove(0).shutdown(Duration::ZERO).await;
    let got = sequence.backward(trace, grad).await?;
    let by_block = |gradients: &petals_client::PassGradients| {
        let mut prompts = gradients.tables.clone();
        prompts.sort_by_key(|(span, _)| *span);
        prompts.into_iter().flat_map(|(_, values)| values).collect::<Vec<f32>>()
    };
    assert_eq!(got.tables.len(), 2, "two servers took over");
    assert_close("gradients of the prompts", &by_block(&got), &by_block(&expected), 1e-5);
    assert_close("gradient of the prefix", &got.prefix.unwrap_or_default(), &expected.prefix.unwrap_or_default(), 1e-5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_nobody_holds_are_named_and_waited_for() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen2")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..1", "3..4"], ExecutorConfig::default()).await?;
    let (events, mut received) = tokio::sync::mpsc::channel(64);
    let config = SequenceConfig { give_up_after: Duration::from_millis(700), ..SequenceConfig::default() };
    let sequence = swarm.sequence(config).with_events(events);
    let text = vec![0.1; 2 * swarm.hidden];
    let input = PassInput { lengths: vec![2], text, read_rows: None, tables: None };
    let error = sequence.forward(input, false).await.map(drop).unwrap_err();
    assert!(matches!(error, SequenceError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("no server holds blocks 1..3"), "{error}");
    assert!(received.recv().await.is_some(), "the wait is visible");
    Ok(())
}

#[test]
fn training_waits_for_a_server_that_comes_back() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("server.key");
    let key = key.to_str().unwrap_or_default();
    let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..2"])?;
    let mut second = Some(swarm.spawn_server(&["--blocks", "2..4", "--identity", key])?);
    second.as_ref().map(|node| node.event("ready")).transpose()?;
    let out = directory.path().join("out");
    let run = training(&swarm, &goldens, "replace", "seq-cls", &out)?.args(&["--give-up-after", "60s"]);
    let (losses, finished) = run.watch(|event| {
        if event["event"] == "step" && event["step"] == 5 {
            second = None;
            second = swarm.spawn_server(&["--blocks", "2..4", "--identity", key]).ok();
        }
        true
    })?;
    swarm.bootstrap.kill()?;
    assert!(finished);
    assert_curves_close("after the wait", &losses, &goldens.numbers("curve.replace.seq-cls"), 1e-3);
    Ok(())
}
