//! What checks of results can do to the honest, and what the dishonest can do to checks.

use std::time::Duration;

use petals_client::{PeerId, RouteRules, SequenceConfig};
use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, assert_close};
use petals_node::ExecutorConfig;
use petals_protocol::ServerInfo;

use crate::misbehaving::{input, pass};

async fn known(swarm: &LocalSwarm, servers: usize) -> anyhow::Result<()> {
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < servers {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// As slow as can be: nobody prefers it, but there it is when somebody else is wanted.
fn slow(info: ServerInfo) -> ServerInfo {
    ServerInfo { forward_tokens_per_s: Some(0.1), ..info }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_agree_on_a_lie_do_not_exclude_the_last_honest_holder_for_good() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    let mut liars = Vec::new();
    for _ in 0..2 {
        let lie = Misbehaviour::Scaled(1.5);
        liars.push(HostileServer::start_as(&member, &swarm.model, "0..2".parse()?, lie, slow).await?);
    }
    known(&swarm, 5).await?;
    let give_up_after = Duration::from_secs(20);
    let sequence = swarm.sequence(SequenceConfig { verify: 1.0, give_up_after, ..SequenceConfig::default() });
    // They outvote the honest one, and nobody here can know better.
    let _ = pass(&sequence, &input, swarm.hidden).await?;
    assert!(liars.iter().all(|liar| liar.misdeeds() > 0), "they were not asked");
    for liar in liars {
        liar.swarm().withdraw().await;
        liar.swarm().shutdown().await;
    }
    let got = pass(&sequence, &input, swarm.hidden).await?;
    assert_close("with the one that was outvoted", &got, &expected, 1e-5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_judge_is_not_outvoted() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    swarm.announce_speed(1.0).await?;
    let mut liars = Vec::new();
    for _ in 0..3 {
        liars.push(HostileServer::start(&member, &swarm.model, "1..3".parse()?, Misbehaviour::Scaled(1.5)).await?);
    }
    known(&swarm, 5).await?;
    let judges: Vec<PeerId> = swarm.servers.iter().map(|server| server.swarm().local_peer()).collect();
    let rules = RouteRules { trusted: judges.into_iter().collect(), ..RouteRules::default() };
    let sequence = swarm.sequence(SequenceConfig { verify: 1.0, rules, ..SequenceConfig::default() });
    for round in 0..3 {
        let got = pass(&sequence, &input, swarm.hidden).await?;
        assert_close(&format!("round {round}"), &got, &expected, 1e-5);
    }
    assert!(liars.iter().any(|liar| liar.misdeeds() > 0), "nobody was tempted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_that_it_computes_coarsely_is_not_allowed_to_lie_more() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    swarm.announce_speed(1.0).await?;
    let coarse = |info| ServerInfo { dtype: "int4".to_owned(), ..info };
    let lie = Misbehaviour::Scaled(1.2);
    let liar = HostileServer::start_as(&member, &swarm.model, "0..2".parse()?, lie, coarse).await?;
    known(&swarm, 3).await?;
    let sequence = swarm.sequence(SequenceConfig { verify: 1.0, ..SequenceConfig::default() });
    let got = pass(&sequence, &input, swarm.hidden).await?;
    assert_close("beside a server of four bits, as it says", &got, &expected, 1e-5);
    liar.swarm().shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_look_like_everything_else() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let watching = HostileServer::start_as(&member, &swarm.model, "0..4".parse()?, Misbehaviour::None, slow).await?;
    known(&swarm, 2).await?;
    // Trials look like short texts.
    let sequence = swarm.sequence(SequenceConfig { verify: 1.0, trials: 0, ..SequenceConfig::default() });
    pass(&sequence, &input, swarm.hidden).await?;
    assert!(watching.passes() >= 2, "it was not asked for its opinion");
    assert_eq!(watching.without_stash(), 0, "of {} passes", watching.passes());
    watching.swarm().shutdown().await;
    Ok(())
}
