//! Servers that choose their blocks themselves, among records that nothing is behind.

use std::time::{Duration, Instant};

use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, ProcessSwarm};
use petals_node::{RebalanceConfig, ServerConfig};
use petals_protocol::{ModelId, Refusal, ServerInfo, ServerState, Span};
use petals_swarm::{Identity, Multiaddr, SwarmConfig, SwarmHandle, SwarmNode};

const OFTEN: RebalanceConfig = RebalanceConfig { period: Duration::from_millis(400) };
/// Longest wait for what takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn moving(spans: &[&str]) -> anyhow::Result<LocalSwarm> {
    let goldens = Goldens::load("llama-gqa")?;
    LocalSwarm::start_with(&goldens.model(), spans, |config| ServerConfig { rebalance: Some(OFTEN), ..config }).await
}

fn member(swarm: &LocalSwarm) -> Multiaddr {
    swarm.servers[0].swarm().listen_addresses().remove(0)
}

/// An identity that announces blocks and serves nothing.
async fn liar(member: &Multiaddr, model: &ModelId, span: &str, rate: f32) -> anyhow::Result<SwarmHandle> {
    let config = SwarmConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
        peers: vec![member.clone()],
        ..SwarmConfig::server()
    };
    let (node, _) = SwarmNode::start(Identity::generate(), config).await?;
    node.wait_connected(Duration::from_secs(10)).await?;
    let info = ServerInfo::new(model.clone(), span.parse()?, ServerState::Online);
    node.announce(ServerInfo { forward_tokens_per_s: Some(rate), dtype: "int4".into(), ..info }).await?;
    Ok(node)
}

/// Waits until the directory has as many servers, then for some looks of the first one, and says where that one is.
async fn after_some_looks(swarm: &LocalSwarm, known: usize) -> anyhow::Result<Span> {
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < known {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (left, end) = (swarm.servers[0].info().span, Instant::now() + 12 * OFTEN.period);
    while Instant::now() < end && swarm.servers[0].info().span == left {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(swarm.servers[0].info().span)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_serves_nothing_moves_nobody() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let mut server = swarm.spawn_server(&["--num-blocks", "2", "--rebalance-period", "500ms"])?;
    server.ready = server.event("ready")?;
    let model: ModelId = server.ready["model"].as_str().unwrap_or_default().parse()?;
    // Two of them, as two holders are wanted.
    let member: Multiaddr = swarm.bootstrap.address.parse()?;
    let liars = [liar(&member, &model, "0..2", f32::MAX).await?, liar(&member, &model, "0..2", 1.0).await?];
    let end = Instant::now() + Duration::from_secs(8);
    let mut seen = 0;
    while Instant::now() < end {
        for entry in liars[0].lookup(&model, "0..4".parse()?).await? {
            let is_liar = liars.iter().any(|liar| liar.local_peer() == entry.peer);
            assert!(is_liar || entry.info.span == "0..2".parse()?, "the only holder has left: {:?}", entry.info);
            seen += usize::from(is_liar);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(seen > 10, "nobody has seen the liars");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_answers_wrongly_or_through_the_server_itself_is_no_holder() -> anyhow::Result<()> {
    // They take their answers from the one server that is there: the very one that asks.
    let tricks = [
        Misbehaviour::None,
        Misbehaviour::Noise,
        Misbehaviour::Stale,
        Misbehaviour::Scaled(3.0),
        Misbehaviour::NotFinite,
        Misbehaviour::WrongShape,
        Misbehaviour::WrongKind,
        Misbehaviour::Hang,
        Misbehaviour::Refuse(Refusal::Busy { retry_after_ms: 1 }),
    ];
    for trick in tricks {
        let swarm = moving(&["0..2"]).await?;
        let span = Span::new(0, 2)?;
        let first = HostileServer::start(&member(&swarm), &swarm.model, span, trick.clone()).await?;
        let second = HostileServer::start(&member(&swarm), &swarm.model, span, trick.clone()).await?;
        assert_eq!(after_some_looks(&swarm, 3).await?, span, "the only holder has left to {trick:?}");
        assert!(first.passes() + second.passes() > 0, "{trick:?}: nobody was asked");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_speed_keeps_nobody_from_moving() -> anyhow::Result<()> {
    let swarm = moving(&["0..2"; 8]).await?;
    swarm.announce_speed(100.0).await?;
    let _liar = liar(&member(&swarm), &swarm.model, "2..4", f32::MAX).await?;
    let deadline = Instant::now() + PATIENCE;
    while swarm.servers.iter().all(|server| server.info().span == Span::new(0, 2).expect("a span")) {
        anyhow::ensure!(Instant::now() < deadline, "eight servers stay where two would do");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_that_somebody_unreachable_claims_is_filled() -> anyhow::Result<()> {
    let swarm = moving(&["0..2", "0..2"]).await?;
    let gone = liar(&member(&swarm), &swarm.model, "2..4", 1e6).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its record stays for two minutes.
    gone.shutdown().await;
    let deadline = Instant::now() + PATIENCE;
    while swarm.servers.iter().all(|server| server.info().span.end() == 2) {
        anyhow::ensure!(Instant::now() < deadline, "nobody serves the second half");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
