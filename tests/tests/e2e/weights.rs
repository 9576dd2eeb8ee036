//! Servers of a model with other weights: a fine-tune, or worse, in a folder of the same name.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use petals_client::{Exclusion, KnownWeights, SequenceConfig, SwarmEvent, Verdict};
use petals_e2e::{Goldens, LocalSwarm, ProcessSwarm, assert_close};
use petals_node::ExecutorConfig;
use serde_json::Value;

use crate::misbehaving::{input, pass};

/// What differs between the copies.
const CHANGED: &str = "model.layers.1.mlp.down_proj.weight";

/// A copy of a model of which one matrix of block 1 is another one.
fn another_copy(model: &Path, to: &Path) -> anyhow::Result<()> {
    for file in fs::read_dir(model)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    let index: Value = serde_json::from_str(&fs::read_to_string(to.join("model.safetensors.index.json"))?)?;
    let shard = index["weight_map"][CHANGED].as_str().context("no such tensor")?;
    let path = to.join(shard);
    let mut bytes = fs::read(&path)?;
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8])) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header])?;
    let tensor = &tensors[CHANGED];
    assert_eq!(tensor["dtype"], "F32");
    let place = |at: usize| tensor["data_offsets"][at].as_u64().unwrap_or_default() as usize + 8 + header;
    for value in bytes[place(0)..place(1)].as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * -3.0).to_le_bytes();
    }
    fs::write(path, bytes)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faster_copy_with_other_weights_is_told_of_and_never_mixed_in() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let mut swarm = LocalSwarm::start(&goldens.model(), &["0..4", "0..2", "2..4"], ExecutorConfig::default()).await?;
    let input = input(&goldens, &swarm)?;
    let expected = pass(&swarm.sequence(SequenceConfig::default()), &input, swarm.hidden).await?;
    swarm.announce_speed(1.0).await?;
    let other = tempfile::tempdir()?;
    another_copy(&goldens.model(), other.path())?;
    // Each has two blocks, so that every route over one of them alone would be a mixture.
    swarm.add_server(other.path(), "0..2").await?;
    swarm.servers[3].announce_speed(1e6).await?;
    let other_peer = swarm.servers[3].swarm().local_peer();
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 4 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (events, mut seen) = tokio::sync::mpsc::channel(256);
    let sequence = swarm.sequence(SequenceConfig::default()).with_events(events);
    let got = pass(&sequence, &input, swarm.hidden).await?;
    assert_close("beside a server with other weights", &got, &expected, 1e-5);
    let told: Vec<SwarmEvent> = std::iter::from_fn(|| seen.try_recv().ok()).collect();
    assert!(told.contains(&SwarmEvent::OtherWeights { peers: vec![other_peer] }), "{told:?}");
    assert!(!sequence.work().contains_key(&other_peer), "it was asked");
    let explained = sequence.explain(27).await?;
    let verdict = explained.servers.into_iter().find(|server| server.peer == other_peer).map(|server| server.verdict);
    assert_eq!(verdict, Some(Verdict::Excluded(Exclusion::OtherWeights)));

    // Whoever asks for it gets it, and something else comes out: it was worth telling them apart.
    let known = |path: &Path| KnownWeights::of_files(path, Some("golden"), None);
    swarm.add_server(other.path(), "2..4").await?;
    while swarm.client.lookup(&swarm.model, swarm.blocks).await?.len() < 5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let config = |weights| SequenceConfig { weights: Some(weights), ..SequenceConfig::default() };
    let sequence = swarm.sequence(config(known(other.path())?));
    let changed = pass(&sequence, &input, swarm.hidden).await?;
    let apart = changed.iter().zip(&expected).map(|(one, two)| (one - two).abs()).fold(0.0, f32::max);
    assert!(apart > 1e-2, "the copies give the same: {apart}");
    let used: Vec<_> = sequence.work().into_keys().collect();
    assert!(used.contains(&other_peer), "{used:?}");
    let sequence = swarm.sequence(config(known(&goldens.model())?));
    let got = pass(&sequence, &input, swarm.hidden).await?;
    assert_close("with the hashes of the original", &got, &expected, 1e-5);
    Ok(())
}

#[test]
fn hashes_of_files_and_of_the_swarm_are_files_for_whoever_wants_just_these() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    let (here, other) = (directory.path().join("here.weights"), directory.path().join("other.weights"));
    let local = swarm.tune("fingerprint")?.output()?;
    let served = swarm.tune("fingerprint")?.args(&["--served"]).output()?;
    let text = String::from_utf8(local.stdout)?;
    let in_use = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(in_use(&text), in_use(&String::from_utf8(served.stdout)?), "{text}");
    assert_eq!(text.lines().count(), 5, "{text}");
    fs::write(&here, &text)?;
    let events = swarm.tune("route")?.path("--weights", &here).events()?;
    assert!(events.iter().any(|event| event["event"] == "route"), "{events:?}");
    // Hashes of something else: the server is there, and is not used.
    let changed: Vec<String> = text
        .lines()
        .map(|line| {
            line.replace("2 ", "2 00000000").chars().take(if line.starts_with("2 ") { 26 } else { 999 }).collect()
        })
        .collect();
    fs::write(&other, changed.join("\n"))?;
    let refused = swarm.tune("route")?.path("--weights", &other).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("other weights"), "{said}");
    fs::write(&other, "2 nonsense")?;
    let refused = swarm.tune("route")?.path("--weights", &other).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("line 1"), "{said}");
    Ok(())
}
