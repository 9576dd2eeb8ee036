//! Servers that choose their blocks themselves, and choose again.

use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{Goldens, LocalSwarm, Node, ProcessSwarm, assert_curves_close};
use petals_model::Division;
use petals_node::{ExecutorConfig, RebalanceConfig, ServerConfig};
use petals_protocol::{ServerInfo, Span};

use crate::curves::training;

const OFTEN: RebalanceConfig = RebalanceConfig { period: Duration::from_millis(400) };
/// Longest wait for something that takes a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the servers host now. Fails if nobody serves some block of `always`.
fn hosted(swarm: &LocalSwarm, always: Span) -> anyhow::Result<Vec<ServerInfo>> {
    let infos: Vec<ServerInfo> = swarm.servers.iter().map(|server| server.info()).collect();
    let served = |block: &u32| infos.iter().any(|info| info.span.contains(*block));
    match always.blocks().find(|block| !served(block)) {
        Some(hole) => anyhow::bail!("block {hole} was left alone: {infos:?}"),
        None => Ok(infos),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_is_filled_without_making_another() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    // Three servers hold the first half, and all of them want to leave it.
    let moving = |config: ServerConfig| ServerConfig { rebalance: Some(OFTEN), ..config };
    let swarm = LocalSwarm::start_with(&goldens.model(), &["0..2", "0..2", "0..2"], moving).await?;
    let deadline = Instant::now() + PATIENCE;
    while hosted(&swarm, swarm.blocks).is_err() {
        hosted(&swarm, Span::new(0, 2)?)?;
        anyhow::ensure!(Instant::now() < deadline, "the second half stays unserved");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // From here on there is no hole again, whoever else moves.
    let end = Instant::now() + 8 * OFTEN.period;
    while Instant::now() < end {
        hosted(&swarm, swarm.blocks)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_holder_of_a_block_stays() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let moving = |config: ServerConfig| ServerConfig { rebalance: Some(OFTEN), ..config };
    let swarm = LocalSwarm::start_with(&goldens.model(), &["0..2"], moving).await?;
    tokio::time::sleep(6 * OFTEN.period).await;
    assert_eq!(swarm.servers[0].info().span, Span::new(0, 2)?);
    Ok(())
}

/// A stash that a client left on a server is used up although the server moves in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_backward_ends_where_its_forward_began_although_the_server_moved() -> anyhow::Result<()> {
    moves_between_forward_and_backward(|division| division).await
}

/// The same with a server whose blocks are divided: all of them take the places of those that leave.
#[tokio::test(flavor = "multi_thread")]
async fn a_divided_server_moves_on_all_of_its_devices() -> anyhow::Result<()> {
    moves_between_forward_and_backward(|division| {
        let (span, place) = division.parts()[0].clone();
        Division::new(span, [(1, place.clone()), (span.len() - 1, place)]).expect("at least two blocks")
    })
    .await
}

async fn moves_between_forward_and_backward(divided: fn(Division) -> Division) -> anyhow::Result<()> {
    use petals_client::{RelayMode, SequenceConfig};
    let goldens = Goldens::load("qwen3")?;
    let moving = |config: ServerConfig| {
        let rebalance = (config.division.span().start() == 0).then_some(OFTEN);
        let division = divided(config.division);
        ServerConfig { rebalance, division, executor: ExecutorConfig::default(), ..config }
    };
    let mut swarm = LocalSwarm::start_with(&goldens.model(), &["0..2", "2..4"], moving).await?;
    let input = crate::misbehaving::input(&goldens, &swarm)?;
    let sequence = swarm.sequence(SequenceConfig { relay: RelayMode::Star, ..SequenceConfig::default() });
    let grad = vec![0.01; 2 * swarm.hidden];
    let (_, trace) = sequence.forward(input.clone(), true).await?;
    let expected = sequence.backward(trace, grad.clone()).await?;
    let (_, trace) = sequence.forward(input, true).await?;
    let before = sequence.traffic();
    // A second holder of the first half, and nobody for the second one: the first server is needed there.
    swarm.add_server(&goldens.model(), "0..2").await?;
    swarm.servers.remove(1).shutdown(Duration::ZERO).await;
    let left = Span::new(0, 2)?;
    tokio::time::timeout(PATIENCE, async {
        while swarm.servers[0].info().span == left {
            swarm.servers[0].moved_from(left, swarm.servers[0].info().moving_to).await;
        }
    })
    .await
    .context("it does not move")?;
    let got = sequence.backward(trace, grad).await?;
    petals_e2e::assert_close(
        "gradient of the prefix",
        &got.prefix.unwrap_or_default(),
        &expected.prefix.unwrap_or_default(),
        1e-5,
    );
    let count = sequence.traffic().since(&before);
    // The second half is replayed where there is a server now, the first one is not.
    assert_eq!((count.block_forwards, count.block_backwards), (2, 4));
    Ok(())
}

#[test]
fn a_swarm_of_programs_heals_by_itself_and_no_loss_changes() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let expected = {
        let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
        training(&swarm, &goldens, "replace", "causal-lm", &directory.path().join("free"))?.losses()?
    };
    let mut swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let chosen = |node: &mut Node| -> anyhow::Result<Span> {
        node.ready = node.event("ready")?;
        Ok(node.ready["blocks"].as_str().context("no blocks")?.parse()?)
    };
    let arguments = ["--num-blocks", "2", "--rebalance-period", "500ms"];
    for _ in 0..3 {
        let mut node = swarm.spawn_server(&arguments)?;
        chosen(&mut node)?;
        swarm.servers.push(node);
    }
    let mut spans = Vec::new();
    for node in &swarm.servers {
        spans.push(node.ready["blocks"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(spans[..2], ["0..2", "2..4"], "the second one takes what the first one left");
    // The half that has one server loses it in the middle of the run: one of the other half takes over.
    let alone = if spans[2] == "0..2" { 1 } else { 0 };
    let out = directory.path().join("moved");
    let run = training(&swarm, &goldens, "replace", "causal-lm", &out)?.args(&["--give-up-after", "120s"]);
    let mut gone = false;
    let (losses, finished) = run.watch(|event| {
        if event["event"] == "step" && event["step"] == 5 {
            gone = swarm.servers[alone].signal("TERM").is_ok();
        }
        true
    })?;
    assert!(finished && gone);
    assert_eq!(swarm.servers[alone].wait()?, 0);
    assert_curves_close("across a move", &losses, &expected, 1e-5);
    Ok(())
}
