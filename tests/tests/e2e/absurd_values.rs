//! A value that is finite and no number that a model gives, which is infinite one server later.

use std::time::Duration;

use petals_client::{RelayMode, SequenceConfig, SwarmEvent};
use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, assert_close};
use petals_node::ExecutorConfig;

use crate::misbehaving::{input, pass};

#[tokio::test(flavor = "multi_thread")]
async fn one_absurd_value_costs_a_retry_and_blames_who_gave_it() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    swarm.announce_speed(1.0).await?;
    for span in ["0..2", "2..4"] {
        let hostile = HostileServer::start(&member, &swarm.model, span.parse()?, Misbehaviour::None).await?;
        while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let liar = hostile.swarm().local_peer();
        for relay in [RelayMode::Star, RelayMode::Chain] {
            for backward in [true, false] {
                let what = format!("{span}, {relay:?}, only in the backward: {backward}");
                let (events, mut seen) = tokio::sync::mpsc::channel(256);
                let config =
                    SequenceConfig { relay, give_up_after: Duration::from_secs(20), ..SequenceConfig::default() };
                let sequence = swarm.sequence(config).with_events(events);
                hostile.misbehave(Misbehaviour::Absurd { backward });
                let before = hostile.misdeeds();
                let got = pass(&sequence, &input, swarm.hidden).await.map_err(|error| error.context(what.clone()))?;
                assert_close(&what, &got, &expected, 1e-5);
                assert!(hostile.misdeeds() > before, "{what}: it was not asked");
                let told: Vec<SwarmEvent> = std::iter::from_fn(|| seen.try_recv().ok()).collect();
                let blamed: Vec<_> = told
                    .iter()
                    .filter_map(|event| match event {
                        SwarmEvent::HopFailed { peer, .. } => Some(*peer),
                        _ => None,
                    })
                    .collect();
                assert!(blamed.contains(&liar), "{what}: {told:?}");
                assert!(blamed.iter().all(|peer| *peer == liar), "{what}: others are blamed: {told:?}");
                hostile.misbehave(Misbehaviour::None);
            }
        }
        hostile.swarm().withdraw().await;
        hostile.swarm().shutdown().await;
    }
    Ok(())
}
