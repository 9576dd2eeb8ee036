//! What a client remembers of servers from one run to the next.

use std::time::Duration;

use petals_client::{PeerId, RouteRules, SequenceConfig};
use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, assert_close};
use petals_node::ExecutorConfig;

use crate::misbehaving::{input, pass};

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_that_was_found_out_is_not_met_again_by_the_next_run() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    swarm.announce_speed(1.0).await?;
    let liar = HostileServer::start(&member, &swarm.model, "1..3".parse()?, Misbehaviour::Scaled(1.5)).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let folder = tempfile::tempdir()?;
    let reputation = Some(folder.path().join("reputation"));
    // The attack: a run that checks nothing and remembers nothing takes what the liar gives. Nobody is tried out, since the liar would have to be as quick as it says.
    let believing = SequenceConfig { trials: 0, ..SequenceConfig::default() };
    let got = pass(&swarm.sequence(believing.clone()), &input, swarm.hidden).await?;
    assert!(liar.misdeeds() > 0 && got != expected, "nobody was tempted");
    // A run that checks finds it out.
    let judges: Vec<PeerId> = swarm.servers.iter().map(|server| server.swarm().local_peer()).collect();
    let rules = RouteRules { trusted: judges.into_iter().collect(), ..RouteRules::default() };
    let checking = SequenceConfig { verify: 1.0, rules, reputation: reputation.clone(), ..believing };
    let got = pass(&swarm.sequence(checking), &input, swarm.hidden).await?;
    assert_close("checked", &got, &expected, 1e-5);
    // And those behind it, which check nothing, do not ask it.
    let before = liar.misdeeds();
    for run in 0..3 {
        let config = SequenceConfig { reputation: reputation.clone(), ..SequenceConfig::default() };
        let got = pass(&swarm.sequence(config), &input, swarm.hidden).await?;
        assert_close(&format!("run {run}"), &got, &expected, 1e-5);
    }
    assert_eq!(liar.misdeeds(), before, "it was asked again");
    // A damaged file is set aside, and no run fails by it.
    std::fs::write(folder.path().join("reputation"), "nonsense")?;
    let config = SequenceConfig { reputation, ..SequenceConfig::default() };
    pass(&swarm.sequence(config), &input, swarm.hidden).await?;
    assert!(folder.path().join("reputation.damaged").exists());
    liar.swarm().shutdown().await;
    Ok(())
}
