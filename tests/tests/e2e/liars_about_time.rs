//! Servers that take long and say that they do not, and servers that say something without answering.

use std::time::{Duration, Instant};

use petals_client::{PassInput, RelayMode, SequenceConfig};
use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, assert_close};
use petals_node::ExecutorConfig;

use crate::misbehaving::{input, pass};

/// Passes after which everybody should know better.
const PASSES: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn who_claims_to_take_no_time_is_left_for_others() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let PassInput { text, .. } = input(&goldens, &swarm)?;
    // A step of a few rows, less than says anything of a link.
    let rows = 3;
    let input =
        PassInput { lengths: vec![rows], text: text[..3 * swarm.hidden].to_vec(), read_rows: None, tables: None };
    let (expected, _) = swarm.sequence(SequenceConfig::default()).forward(input.clone(), false).await?;
    swarm.announce_speed(1000.0).await?;
    let liar = HostileServer::start(&member, &swarm.model, "0..2".parse()?, Misbehaviour::None).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Not so long that silence gives it away.
    liar.misbehave(Misbehaviour::SlowForFree(Duration::from_millis(900)));
    for relay in [RelayMode::Star, RelayMode::Chain] {
        let sequence = swarm.sequence(SequenceConfig { relay, ..SequenceConfig::default() });
        let before = liar.misdeeds();
        let mut times = Vec::new();
        for _ in 0..PASSES {
            let started = Instant::now();
            let (got, _) = sequence.forward(input.clone(), false).await?;
            assert_close(&format!("{relay:?}"), &got, &expected, 1e-5);
            times.push(started.elapsed());
            // Routes are looked at again after two seconds, or when something happened.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!(liar.misdeeds() > before, "{relay:?}: it was not asked");
        eprintln!("{relay:?}: {times:.0?}");
        let last = *times.last().unwrap_or(&Duration::MAX);
        assert!(last < Duration::from_millis(450), "{relay:?}: it is still in the route: {times:?}");
    }
    liar.swarm().shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_waits_for_are_no_sign_of_life() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    swarm.announce_speed(1000.0).await?;
    let talker = HostileServer::start(&member, &swarm.model, "0..2".parse()?, Misbehaviour::None).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    talker.misbehave(Misbehaviour::Chatter(Duration::from_millis(500)));
    for relay in [RelayMode::Star, RelayMode::Chain] {
        let patient = Duration::from_secs(60);
        let sequence = swarm.sequence(SequenceConfig { relay, request_timeout: patient, ..SequenceConfig::default() });
        let (started, before) = (Instant::now(), talker.misdeeds());
        let got = pass(&sequence, &input, swarm.hidden).await?;
        assert_close(&format!("{relay:?}"), &got, &expected, 1e-5);
        assert!(talker.misdeeds() > before, "{relay:?}: it was not asked");
        eprintln!("{relay:?}: {:.1?}", started.elapsed());
        assert!(started.elapsed() < patient / 2, "{relay:?}: nobody else was asked");
    }
    talker.swarm().shutdown().await;
    Ok(())
}
