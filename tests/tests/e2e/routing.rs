//! Which servers are used: the user's rules, several routes at once, servers that fall silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_client::{
    AdamW, Hop, PeerId, PromptTuner, RelayMode, RouteRules, SequenceConfig, SequenceError, SwarmEvent, Table,
    TunerConfig, WireDtype,
};
use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, ProcessSwarm, assert_close};
use petals_node::ExecutorConfig;
use petals_protocol::Span;

use crate::gradients::{examples, tables};
use crate::misbehaving::{input, pass};

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).expect("not empty")
}

async fn hops(swarm: &LocalSwarm, goldens: &Goldens, rules: RouteRules) -> anyhow::Result<Vec<Hop>> {
    let give_up_after = Duration::from_millis(300);
    let sequence = swarm.sequence(SequenceConfig { rules, give_up_after, ..SequenceConfig::default() });
    let (_, trace) = sequence.forward(input(goldens, swarm)?, false).await?;
    Ok(trace.hops().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_decide_who_runs_what_and_are_named_where_they_cannot_be_kept() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen2")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..4", "1..3"], ExecutorConfig::default()).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let peers: Vec<PeerId> = swarm.servers.iter().map(|server| server.swarm().local_peer()).collect();
    let by = |hops: &[Hop]| hops.iter().map(|hop| (hop.peer, hop.span)).collect::<Vec<_>>();
    for (one, other) in [(0, 1), (1, 0)] {
        let allowed = RouteRules { allow: [peers[one]].into(), ..RouteRules::default() };
        assert_eq!(by(&hops(&swarm, &goldens, allowed).await?), [(peers[one], span(0, 4))]);
        let blocked = RouteRules { block: [peers[other], peers[2]].into(), ..RouteRules::default() };
        assert_eq!(by(&hops(&swarm, &goldens, blocked).await?), [(peers[one], span(0, 4))]);
        let pinned =
            RouteRules { trusted: [peers[one]].into(), pins: vec![(span(1, 3), peers[2])], ..RouteRules::default() };
        let expected = [(peers[one], span(0, 1)), (peers[2], span(1, 3)), (peers[one], span(3, 4))];
        assert_eq!(by(&hops(&swarm, &goldens, pinned).await?), expected);
    }
    let nobody = RouteRules { trusted: [peers[2]].into(), ..RouteRules::default() };
    let error = hops(&swarm, &goldens, nobody).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error.downcast_ref(), Some(SequenceError::Missing { .. })), "{text}");
    assert!(text.contains("no server may run blocks 0, 3") && text.contains("--trusted"), "{text}");
    assert!(text.contains(&peers[0].to_string()) && text.contains(&peers[1].to_string()), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn micro_batches_on_several_routes_give_the_gradients_of_one() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..2", "2..4"], ExecutorConfig::default()).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    swarm.announce_speed(1000.0).await?;
    let tuning = TunerConfig { micro_batch_tokens: Some(1), in_flight: Some(3), ..TunerConfig::default() };
    let tuner = |routes| -> anyhow::Result<_> {
        let sequence = Arc::new(swarm.sequence(SequenceConfig { routes, trials: 0, ..SequenceConfig::default() }));
        let tables = tables(&goldens, &swarm, "add", "causal-lm")?;
        let optimizer = AdamW::new(tables.shape(), 0.0);
        let tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, tuning.clone());
        Ok((sequence, tuner))
    };
    let examples = examples(&goldens, "causal-lm")?;
    let (alone, single) = tuner(1)?;
    let (expected, expected_score) = single.gradients(&examples).await?;
    let (sequence, several) = tuner(4)?;
    // How fast servers are is measured, so it may take some steps until the second route is worth it.
    for _ in 0..50 {
        let (got, score) = several.gradients(&examples).await?;
        let (loss, expected_loss) = (score.loss().unwrap_or(f64::NAN), expected_score.loss().unwrap_or(f64::NAN));
        assert!((loss - expected_loss).abs() <= 1e-5 * expected_loss, "{loss} for {expected_loss}");
        for table in [Table::Input, Table::Deep] {
            let (got, expected) = (got.table(table).unwrap_or_default(), expected.table(table).unwrap_or_default());
            assert_close(&format!("{table:?}"), got, expected, 1e-5);
        }
        if sequence.work().len() == 3 {
            break;
        }
    }
    assert_eq!(sequence.work().len(), 3, "every server had micro-batches");
    assert!(alone.work().len() < 3, "one route needs one or two of the servers");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_is_raced_by_another_one() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    // How long silence is borne depends on what a server says of itself; the silent one says it is faster.
    swarm.announce_speed(1000.0).await?;
    for blocks in ["0..2", "2..4"] {
        let silent = HostileServer::start(&member, &swarm.model, blocks.parse()?, Misbehaviour::None).await?;
        while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for relay in [RelayMode::Star, RelayMode::Chain] {
            for in_backward in [false, true] {
                let what = format!("{blocks}, {relay:?}, in the backward: {in_backward}");
                let (events, mut seen) = tokio::sync::mpsc::channel(256);
                let patient = Duration::from_secs(600);
                // Tried out, it would not be used at all.
                let config = SequenceConfig { relay, request_timeout: patient, trials: 0, ..SequenceConfig::default() };
                let sequence = swarm.sequence(config).with_events(events);
                silent.misbehave(if in_backward { Misbehaviour::None } else { Misbehaviour::Hang });
                let started = Instant::now();
                let (mut got, trace) = sequence.forward(input.clone(), true).await?;
                silent.misbehave(Misbehaviour::Hang);
                let mut gradients = sequence.backward(trace, vec![0.01; 2 * swarm.hidden]).await?;
                gradients.tables.sort_by_key(|(span, _)| *span);
                got.extend(gradients.prefix.unwrap_or_default());
                got.extend(gradients.tables.into_iter().flat_map(|(_, values)| values));
                assert_close(&what, &got, &expected, 1e-5);
                eprintln!("silent {what}: done after {:.1?}", started.elapsed());
                assert!(started.elapsed() < patient / 4, "{what}: nobody else was asked");
                let peer = silent.swarm().local_peer();
                let told = std::iter::from_fn(|| seen.try_recv().ok()).any(|event| {
                    matches!(event, SwarmEvent::Outpaced { peer: slow, .. } | SwarmEvent::HopFailed { peer: slow, .. }
                        if slow == peer)
                });
                assert!(told, "{what}: nobody was told");
                assert!(sequence.races().0 > 0, "{what}: no race was counted");
            }
        }
        silent.swarm().withdraw().await;
        silent.swarm().shutdown().await;
    }
    Ok(())
}

#[test]
fn the_command_line_explains_its_route() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4", "0..2"])?;
    let whole = swarm.servers[0].address.rsplit('/').next().unwrap_or_default();
    let part = swarm.servers[1].address.rsplit('/').next().unwrap_or_default();
    let events = swarm.tune("route")?.args(&["--explain", "--pin", &format!("0={part}")]).events()?;
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).cloned().collect::<Vec<_>>();
    let considered = named("considered");
    assert_eq!(considered.len(), 2);
    for server in &considered {
        for figure in ["block_seconds", "queue_seconds", "round_trip_seconds", "bytes_per_s"] {
            let source = server[figure]["source"].as_str().unwrap_or_default();
            assert!(["measured", "announced", "assumed"].contains(&source), "{server}");
            assert!(server[figure]["value"].as_f64().is_some_and(|value| value >= 0.0), "{server}");
        }
        assert_eq!(server["chosen"], true);
    }
    let [route] = named("route").try_into().map_err(|_| anyhow::anyhow!("not one route"))?;
    let hops = route["hops"].as_array().cloned().unwrap_or_default();
    assert_eq!((&hops[0]["peer"], hops.last().map(|hop| &hop["peer"])), (&part.into(), Some(&whole.into())));
    assert!(hops.iter().all(|hop| hop["compute_s"].as_f64().is_some_and(|seconds| seconds > 0.0)), "{route}");
    assert!(!named("training_route").is_empty());
    // Rules that leave a block without a server are explained by name.
    let output = swarm.tune("route")?.args(&["--explain", "--block", whole]).output()?;
    assert!(!output.status.success());
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(stdout.contains("not used: in --block"), "{stdout}");
    assert!(stderr.contains("no server may run blocks 2..4") && stderr.contains(whole), "{stderr}");
    Ok(())
}

/// Servers that give wrong results of the right shape.
fn liars() -> [Misbehaviour; 3] {
    [Misbehaviour::Noise, Misbehaviour::Scaled(1.1), Misbehaviour::Stale]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_found_out_and_what_it_did_is_repeated() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let examples = examples(&goldens, "causal-lm")?;
    let tuning = TunerConfig { micro_batch_tokens: Some(1), in_flight: Some(3), ..TunerConfig::default() };
    let tuner = |sequence| -> anyhow::Result<_> {
        let tables = tables(&goldens, &swarm, "add", "causal-lm")?;
        let optimizer = AdamW::new(tables.shape(), 0.0);
        Ok(PromptTuner::new(Arc::new(sequence), swarm.local.clone(), tables, optimizer, tuning.clone()))
    };
    let mut honest = tuner(swarm.sequence(SequenceConfig::default()))?;
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(honest.step(&examples, 0.05).await?.loss);
    }
    swarm.announce_speed(1.0).await?;
    for lie in liars() {
        let liar = HostileServer::start(&member, &swarm.model, span(0, 2), Misbehaviour::None).await?;
        while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        liar.misbehave(lie.clone());
        let (events, mut seen) = tokio::sync::mpsc::channel(1024);
        let config = SequenceConfig { verify: 1.0, ..SequenceConfig::default() };
        let mut checked = tuner(swarm.sequence(config).with_events(events))?;
        for (step, expected) in expected.iter().enumerate() {
            let loss = checked.step(&examples, 0.05).await?.loss;
            assert!((loss - expected).abs() <= 1e-5 * expected, "{lie:?}, step {step}: {loss} for {expected}");
        }
        assert!(liar.misdeeds() > 0, "{lie:?}: it was not asked");
        let accused: Vec<PeerId> = std::iter::from_fn(|| seen.try_recv().ok())
            .filter_map(|event| match event {
                SwarmEvent::UntrueResult { peer, .. } => Some(peer),
                _ => None,
            })
            .collect();
        let liar_id = liar.swarm().local_peer();
        assert!(accused.contains(&liar_id), "{lie:?}: not found out");
        assert!(accused.iter().all(|peer| *peer == liar_id), "{lie:?}: others are accused");
        // Once it is known nobody asks it any more.
        let misdeeds = liar.misdeeds();
        checked.step(&examples, 0.05).await?;
        assert_eq!(liar.misdeeds(), misdeeds, "{lie:?}: it is still asked");
        liar.swarm().withdraw().await;
        liar.swarm().shutdown().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_servers_confirm_each_other_on_every_wire() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..3", "2..4"], ExecutorConfig::default()).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let input = input(&goldens, &swarm)?;
    for wire_dtype in [WireDtype::F32, WireDtype::F16, WireDtype::Bf16, WireDtype::Int8] {
        let sequence = swarm.sequence(SequenceConfig { verify: 1.0, wire_dtype, ..SequenceConfig::default() });
        pass(&sequence, &input, swarm.hidden).await?;
        let found = sequence.verification();
        assert!(found.confirmed >= 2, "{wire_dtype}: {found:?}");
        assert_eq!((found.disputed, found.untrue), (0, 0), "{wire_dtype}: {found:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_that_stand_by_their_word_are_reported_and_neither_is_accused() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let liar = HostileServer::start(&member, &swarm.model, span(0, 2), Misbehaviour::Scaled(1.5)).await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (events, mut seen) = tokio::sync::mpsc::channel(1024);
    let sequence = swarm.sequence(SequenceConfig { verify: 1.0, ..SequenceConfig::default() }).with_events(events);
    pass(&sequence, &input(&goldens, &swarm)?, swarm.hidden).await?;
    let told: Vec<SwarmEvent> = std::iter::from_fn(|| seen.try_recv().ok()).collect();
    assert!(told.iter().any(|event| matches!(event, SwarmEvent::Disagreement { .. })), "{told:?}");
    assert!(!told.iter().any(|event| matches!(event, SwarmEvent::UntrueResult { .. })), "{told:?}");
    let found = sequence.verification();
    assert!(found.disputed > 0 && found.untrue == 0, "{found:?}");
    liar.swarm().shutdown().await;
    Ok(())
}
