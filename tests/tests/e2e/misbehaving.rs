//! Servers that do what no honest server does. What can be seen to be wrong costs a retry and the server its place in the
//! route; results never change.

use std::sync::Arc;
use std::time::Duration;

use petals_client::{PassInput, PromptTables, RelayMode, RemoteSequence, SequenceConfig, SwarmEvent};
use petals_e2e::{Goldens, HostileServer, LocalSwarm, Misbehaviour, assert_close};
use petals_node::ExecutorConfig;
use petals_protocol::Refusal;

/// Everything that a forward and its backward bring, in one list.
pub(crate) async fn pass(sequence: &RemoteSequence, input: &PassInput, hidden: usize) -> anyhow::Result<Vec<f32>> {
    let (mut all, trace) = sequence.forward(input.clone(), true).await?;
    let mut gradients = sequence.backward(trace, vec![0.01; 2 * hidden]).await?;
    gradients.tables.sort_by_key(|(span, _)| *span);
    all.extend(gradients.prefix.unwrap_or_default());
    all.extend(gradients.tables.into_iter().flat_map(|(_, values)| values));
    Ok(all)
}

pub(crate) fn input(goldens: &Goldens, swarm: &LocalSwarm) -> anyhow::Result<PassInput> {
    let tables: PromptTables = petals_client::Adapter::load(&goldens.path("init-add"), &swarm.adapted())?.tables;
    let ids = Goldens::input_ids()?.concat();
    let (lengths, read_rows) = (vec![9, 9, 9], Some(vec![4, 20]));
    Ok(PassInput { lengths, text: swarm.local.embed(&ids)?, read_rows, tables: Some(Arc::new(tables)) })
}

/// What a client can see to be wrong without asking a second server.
fn visible() -> Vec<Misbehaviour> {
    let what = || "your fault".to_owned();
    vec![
        Misbehaviour::NotFinite,
        Misbehaviour::WrongShape,
        Misbehaviour::NoTensors,
        Misbehaviour::TooManyTensors,
        Misbehaviour::WrongKind,
        Misbehaviour::Truncated,
        Misbehaviour::Garbage,
        Misbehaviour::Oversized,
        Misbehaviour::WrongId,
        Misbehaviour::Hang,
        Misbehaviour::Trickle(Duration::from_millis(200)),
        Misbehaviour::HangUp,
        Misbehaviour::Mute,
        Misbehaviour::OtherSpan("3..4".parse().expect("a span")),
        Misbehaviour::OtherModel("other@0000000000000000".parse().expect("a model id")),
        Misbehaviour::Refuse(Refusal::Internal { what: what() }),
        Misbehaviour::Refuse(Refusal::Draining),
        Misbehaviour::Refuse(Refusal::Busy { retry_after_ms: 50 }),
        Misbehaviour::Refuse(Refusal::StashGone),
        Misbehaviour::Refuse(Refusal::TablesGone),
        Misbehaviour::Refuse(Refusal::BadShape { what: what() }),
        Misbehaviour::Refuse(Refusal::TooLarge { what: what(), got: 2, limit: 1 }),
        Misbehaviour::Refuse(Refusal::NextUnreachable { what: what() }),
        Misbehaviour::Refuse(Refusal::UnknownRelay),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_visibly_wrong_is_routed_around_without_a_trace_in_the_results() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let member = swarm.servers[0].swarm().listen_addresses().remove(0);
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    // Nobody prefers the honest servers.
    swarm.announce_speed(1.0).await?;
    for span in ["0..2", "2..4"] {
        let hostile = HostileServer::start(&member, &swarm.model, span.parse()?, Misbehaviour::None).await?;
        // It is part of the swarm, and used, before it turns bad.
        while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for relay in [RelayMode::Star, RelayMode::Chain] {
            // It turns bad when work depends on it: nobody is tried out before.
            let request_timeout = Duration::from_millis(1500);
            let config = SequenceConfig { relay, request_timeout, trials: 0, ..SequenceConfig::default() };
            hostile.misbehave(Misbehaviour::None);
            let before = hostile.passes();
            let got = pass(&swarm.sequence(config.clone()), &input, swarm.hidden).await?;
            assert_close("through a server that only poses as one", &got, &expected, 1e-5);
            assert!(hostile.passes() > before, "it attracts clients");
            for misbehaviour in visible() {
                let what = format!("{misbehaviour:?}, {span}, {relay:?}");
                let (events, mut seen) = tokio::sync::mpsc::channel(256);
                let sequence = swarm.sequence(config.clone()).with_events(events);
                hostile.misbehave(misbehaviour.clone());
                let misdeeds = hostile.misdeeds();
                let got = pass(&sequence, &input, swarm.hidden).await;
                assert_close(&what, &got.map_err(|e| e.context(what.clone()))?, &expected, 1e-5);
                assert!(hostile.misdeeds() > misdeeds, "{what}: it was not asked");
                let told = std::iter::from_fn(|| seen.try_recv().ok());
                let failure = |event: &SwarmEvent| {
                    matches!(event, SwarmEvent::HopFailed { peer, .. } | SwarmEvent::RelayFailed { peer, .. }
                        | SwarmEvent::Outpaced { peer, .. } if *peer == hostile.swarm().local_peer())
                };
                // To be busy is no fault, and a server may have moved since it announced itself.
                let innocent =
                    matches!(misbehaviour, Misbehaviour::Refuse(Refusal::Busy { .. }) | Misbehaviour::OtherSpan(_));
                assert!(innocent || told.into_iter().any(|event| failure(&event)), "{what}: nobody was told");
            }
        }
        hostile.swarm().withdraw().await;
        hostile.swarm().shutdown().await;
    }
    Ok(())
}
