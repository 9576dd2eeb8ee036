//! Inference sessions against whole forwards, which the goldens of transformers hold to.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use petals_client::{
    AdaptedModel, Adapter, ClientNetwork, Dtype, ModelFiles, RelayMode, RemoteModel, SequenceConfig, TextSession,
};
use petals_e2e::{Goldens, LocalSwarm, ProcessSwarm, assert_close};
use petals_node::ExecutorConfig;

const MODES: [&str; 4] = ["bare", "ptune", "replace", "add"];

pub(crate) async fn swarm(goldens: &Goldens, spans: &[&str]) -> anyhow::Result<LocalSwarm> {
    LocalSwarm::start(&goldens.model(), spans, ExecutorConfig::default()).await
}

pub(crate) fn model(
    goldens: &Goldens,
    swarm: &LocalSwarm,
    mode: &str,
    config: SequenceConfig,
) -> anyhow::Result<RemoteModel> {
    let adapted = AdaptedModel::new(swarm.model.clone(), String::new(), swarm.local.config());
    let tables = match mode {
        "bare" => None,
        mode => Some(Arc::new(Adapter::load(&goldens.path(&format!("init-{mode}")), &adapted)?.tables)),
    };
    let sequence = Arc::new(swarm.sequence(config));
    Ok(RemoteModel::new(sequence, swarm.local.clone()).with_tables(tables))
}

fn by(relay: RelayMode) -> SequenceConfig {
    SequenceConfig { relay, ..SequenceConfig::default() }
}

/// Some token ids of a text of its own.
fn text(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|n| (seed * 31 + n * n * 7 + n * 3) % 61).collect()
}

fn greedy(logits: &[f32]) -> u32 {
    (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best }).unwrap_or_default() as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_mixed_sizes_equal_whole_forwards_for_every_mode_and_number_of_servers() -> anyhow::Result<()> {
    let splits: [&[&str]; 3] = [&["0..4"], &["0..2", "2..4"], &["0..1", "1..3", "3..4"]];
    for (number, family) in Goldens::families()?.iter().enumerate() {
        let goldens = Goldens::load(family)?;
        let swarm = swarm(&goldens, splits[number % splits.len()]).await?;
        for (mode, relay) in MODES.into_iter().flat_map(|mode| [(mode, RelayMode::Chain), (mode, RelayMode::Star)]) {
            let model = model(&goldens, &swarm, mode, by(relay))?;
            let texts = [text(1, 17), text(2, 5), text(3, 12)];
            let whole = model.logits(&texts).await?;
            let vocabulary = whole.len() / 34;
            let mut session = TextSession::new(model, 3, 20);
            let part = |text: usize, range: std::ops::Range<usize>| texts[text][range].to_vec();
            let mut got: [Vec<f32>; 3] = Default::default();
            // Texts begin and end at different times, and one takes a wrong turn and goes back.
            let steps = [[0..9, 0..2, 0..0], [9..10, 2..3, 0..12], [10..11, 3..4, 12..12], [11..17, 4..5, 12..12]];
            for (step, ranges) in steps.into_iter().enumerate() {
                if step == 2 {
                    session.append(&[text(9, 2), text(8, 1), Vec::new()]).await?;
                    session.rollback(&[10, 3, 12]);
                }
                let new: Vec<Vec<u32>> = ranges.iter().cloned().enumerate().map(|(n, range)| part(n, range)).collect();
                let logits = session.append_and_score(&new).await?;
                let mut rest = logits.as_slice();
                for (got, new) in got.iter_mut().zip(&new) {
                    let (own, others) = rest.split_at(new.len() * vocabulary);
                    got.extend_from_slice(own);
                    rest = others;
                }
            }
            assert_close(&format!("{family}, {mode}, {relay}"), &got.concat(), &whole, 1e-4);
        }
    }
    Ok(())
}

/// What crosses the client's link.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_crosses_the_clients_link_once_each_way() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = swarm(&goldens, &["0..1", "1..2", "2..4"]).await?;
    let row = 4 * swarm.hidden as u64;
    for (relay, rows) in [(RelayMode::Chain, 1), (RelayMode::Star, 3)] {
        let model = model(&goldens, &swarm, "replace", by(relay))?;
        let sequence = model.sequence.clone();
        let mut session = TextSession::new(model, 1, 64);
        session.append(&[text(1, 8)]).await?;
        // How fast servers are is not known before the first answers.
        let hops = session.timings().len() as u64;
        let before = sequence.traffic();
        for token in 0..20 {
            session.append(&[vec![token]]).await?;
        }
        let traffic = sequence.traffic().since(&before);
        assert_eq!(hops, 3);
        // Headers of three requests and answers are smaller than a row of a real model, but not of this one.
        for (bytes, what) in [(traffic.sent, "sent"), (traffic.received, "received")] {
            let per_token = bytes / 20;
            let rest = per_token.saturating_sub(rows * row);
            assert!(rest > 0 && rest < 600, "{relay}: {per_token} bytes {what} for each token");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_fork_and_change_places() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen2")?;
    let swarm = swarm(&goldens, &["0..1", "1..4"]).await?;
    // To be verified, results are computed as whole forwards.
    for config in
        [by(RelayMode::Chain), by(RelayMode::Star), SequenceConfig { verify: 1.0, ..SequenceConfig::default() }]
    {
        fork(model(&goldens, &swarm, "add", config)?).await?;
    }
    Ok(())
}

async fn fork(model: RemoteModel) -> anyhow::Result<()> {
    let mut session = TextSession::new(model.clone(), 3, 16);
    let (a, b) = (text(1, 6), text(2, 4));
    session.append(&[a.clone(), b.clone(), Vec::new()]).await?;
    // Two hypotheses go on from the first, one from the second; then they change places before the next step.
    session.reorder(&[0, 1, 0]);
    session.append(&[vec![5], vec![6], vec![7]]).await?;
    session.reorder(&[2, 2, 1]);
    session.reorder(&[2, 0, 1]);
    let logits = session.append(&[vec![1], vec![2], vec![3]]).await?;
    let of = |start: &[u32], end: [u32; 2]| [start, &end].concat();
    let whole = model.next_token_logits(&[of(&b, [6, 1]), of(&a, [7, 2]), of(&a, [7, 3])]).await?;
    assert_close("hypotheses", &logits, &whole, 1e-4);
    assert_eq!(session.lengths(), [6, 8, 8]);
    Ok(())
}

/// Texts longer than a chunk, and long enough that servers know where they begin alike.
#[tokio::test(flavor = "multi_thread")]
async fn long_texts_that_begin_alike_give_what_they_would_alone() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let swarm = swarm(&goldens, &["0..2", "2..4"]).await?;
    let common = text(5, 160);
    for (mode, relay) in [("add", RelayMode::Chain), ("replace", RelayMode::Star), ("bare", RelayMode::Chain)] {
        let model = model(&goldens, &swarm, mode, by(relay))?;
        for (seed, more) in [(1, 30), (2, 90), (1, 30), (3, 330)] {
            let whole = [common.clone(), text(seed, more)].concat();
            let expected = model.logits(std::slice::from_ref(&whole)).await?;
            let vocabulary = expected.len() / whole.len();
            let mut session = TextSession::new(model.clone(), 1, whole.len());
            let first = whole.len() - 5;
            let got = session.append(&[whole[..first].to_vec()]).await?;
            let what = format!("{mode}, {relay}, {} tokens", whole.len());
            assert_close(&what, &got, &expected[(first - 1) * vocabulary..first * vocabulary], 1e-4);
            let got = session.append_and_score(&[whole[first..].to_vec()]).await?;
            assert_close(&what, &got, &expected[first * vocabulary..], 1e-4);
        }
        // Together more than a request brings.
        let texts = [text(1, 300), text(2, 310)];
        let expected = model.next_token_logits(&texts).await?;
        let got = TextSession::new(model, 2, 310).append(&texts).await?;
        assert_close(&format!("{mode}, {relay}, two texts"), &got, &expected, 1e-4);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lost_at_any_token_changes_no_token() -> anyhow::Result<()> {
    const TOKENS: usize = 48;
    let goldens = Goldens::load("qwen3")?;
    let cases = [("replace", 1, RelayMode::Chain), ("add", 3, RelayMode::Chain), ("ptune", 2, RelayMode::Star)];
    for (mode, sequences, relay) in cases {
        // Through the client it takes a while.
        let every = if relay == RelayMode::Chain { 1 } else { 5 };
        let start: Vec<Vec<u32>> = (0..sequences).map(|n| text(n as u32, 4 + n)).collect();
        let mut expected: Option<Vec<Vec<u32>>> = None;
        for lost_at in std::iter::once(None).chain((0..TOKENS).step_by(every).map(Some)) {
            let mut swarm = swarm(&goldens, &["0..2", "2..4", "0..3", "3..4"]).await?;
            // Before that a client knows nobody but the server that it joined through.
            while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 4 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let model = model(&goldens, &swarm, mode, by(relay))?;
            let mut session = TextSession::new(model, sequences, 64);
            let mut texts = vec![Vec::new(); sequences];
            let mut new = start.clone();
            for token in 0..TOKENS {
                if lost_at == Some(token) {
                    // The hop of this step that serves the first or the last block, in turn.
                    let used = session.timings().get(if token % 2 == 0 {
                        0
                    } else {
                        session.timings().len().saturating_sub(1)
                    });
                    let at = used.and_then(|(hop, _)| {
                        swarm.servers.iter().position(|server| server.swarm().local_peer() == hop.peer)
                    });
                    swarm.servers.remove(at.unwrap_or_default()).shutdown(Duration::ZERO).await;
                }
                let logits = session.append(&new).await?;
                let vocabulary = logits.len() / sequences;
                new = logits.chunks_exact(vocabulary).map(|logits| vec![greedy(logits)]).collect();
                texts.iter_mut().zip(&new).for_each(|(text, new): (&mut Vec<u32>, _)| text.extend(new));
            }
            match &expected {
                None => expected = Some(texts),
                Some(expected) => assert_eq!(&texts, expected, "{mode}, {relay}: lost at {lost_at:?}"),
            }
        }
    }
    Ok(())
}

/// Processes that are killed, fall silent for good, and are asked to leave, each with a replacement at hand.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_die_fall_silent_or_leave_change_no_token() -> anyhow::Result<()> {
    const TOKENS: usize = 40;
    let goldens = Goldens::load("llama-gqa")?;
    let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let files = ModelFiles::open(&goldens.model(), None, Dtype::F32)?;
    let network = ClientNetwork { peers: vec![swarm.bootstrap.address.clone()], ..ClientNetwork::default() };
    let (events, _seen) = tokio::sync::mpsc::channel(16);
    let (sequence, client) = files.connect(&network, SequenceConfig::default(), events).await?;
    let tables = Adapter::load(&goldens.path("init-add"), &files.adapted)?.tables;
    let model = RemoteModel::new(Arc::new(sequence), files.local.clone()).with_tables(Some(Arc::new(tables)));
    let mut expected: Vec<u32> = Vec::new();
    for fates in [vec![], vec![(6, "KILL", 0), (14, "TERM", 1), (22, "STOP", 0), (30, "KILL", 1)]] {
        let mut session = TextSession::new(model.clone(), 1, 64);
        let (mut new, mut tokens) = (text(3, 6), Vec::new());
        for token in 0..TOKENS {
            if let Some((_, signal, which)) = fates.iter().find(|(at, ..)| *at == token) {
                let hops: Vec<_> = session.timings().iter().map(|(hop, _)| *hop).collect();
                let hop = hops.get(*which).or(hops.last()).context("no hops")?;
                let address = format!("/p2p/{}", hop.peer);
                let victim = swarm.servers.iter().position(|server| server.address.ends_with(&address));
                let victim = victim.context("an unknown server")?;
                let span = swarm.servers[victim].ready["blocks"].as_str().context("no blocks")?.to_owned();
                let mut replacement = swarm.spawn_server(&["--blocks", &span])?;
                replacement.ready = replacement.event("ready")?;
                let peer = replacement.address.rsplit('/').next().unwrap_or_default().to_owned();
                let known = async || {
                    let found = client.lookup(&files.adapted.id, files.blocks).await.unwrap_or_default();
                    found.iter().any(|entry| entry.peer.to_string() == peer)
                };
                while !known().await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                swarm.servers[victim].signal(signal)?;
                swarm.servers.push(replacement);
            }
            let logits = session.append(&[new]).await?;
            tokens.push(greedy(&logits));
            new = vec![greedy(&logits)];
        }
        if fates.is_empty() {
            expected = tokens;
        } else {
            assert_eq!(tokens, expected);
        }
    }
    Ok(())
}
