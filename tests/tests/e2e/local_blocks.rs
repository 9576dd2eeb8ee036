//! The first blocks of a model run by the client, so that nobody else sees what goes in. Nothing may change by it.

use std::path::PathBuf;
use std::sync::Arc;

use petals_client::{
    AdaptedModel, Adapter, Dtype, LocalBlocks, PassGradients, PassInput, RelayMode, RemoteModel, SequenceConfig,
    TextSession,
};
use petals_e2e::{ApiServer, Goldens, LocalSwarm, ProcessSwarm};
use petals_model::Checkpoint;
use petals_node::ExecutorConfig;
use petals_protocol::Span;
use serde_json::json;

use crate::curves::training;

const MODES: [&str; 7] = ["bare", "ptune", "replace", "add", "peft-lora", "peft-ia3", "peft-prefix"];

/// Where the adapter of a mode is; not every family has each.
fn adapter(goldens: &Goldens, mode: &str) -> Option<PathBuf> {
    let name = if mode.starts_with("peft") { format!("adapters/{mode}") } else { format!("init-{mode}") };
    Some(goldens.path(&name)).filter(|path| path.exists())
}

/// Those that there are of a family.
fn modes(goldens: &Goldens) -> Vec<&'static str> {
    MODES.into_iter().filter(|mode| *mode == "bare" || adapter(goldens, mode).is_some()).collect()
}

/// Without local blocks, and with the first `blocks` of them.
fn models(
    goldens: &Goldens,
    swarm: &LocalSwarm,
    mode: &str,
    blocks: u32,
    relay: RelayMode,
) -> anyhow::Result<[RemoteModel; 2]> {
    let adapted = AdaptedModel::new(swarm.model.clone(), String::new(), swarm.local.config());
    let path = adapter(goldens, mode);
    let tables = path.map(|path| anyhow::Ok(Arc::new(Adapter::load(&path, &adapted)?.tables))).transpose()?;
    let local = Arc::new(LocalBlocks::open(&goldens.model(), Span::new(0, blocks)?, Dtype::F32)?);
    let model = |local| {
        let sequence = Arc::new(swarm.sequence(SequenceConfig { relay, local, ..SequenceConfig::default() }));
        RemoteModel::new(sequence, swarm.local.clone()).with_tables(tables.clone())
    };
    Ok([model(None), model(Some(local))])
}

fn by_block(gradients: &PassGradients) -> Vec<f32> {
    let mut tables = gradients.tables.clone();
    tables.sort_by_key(|(span, _)| *span);
    tables.into_iter().flat_map(|(_, values)| values).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_and_gradients_are_to_the_bit_what_servers_alone_give() -> anyhow::Result<()> {
    for (number, family) in Goldens::families()?.iter().enumerate() {
        let goldens = Goldens::load(family)?;
        let spans: &[&str] = if number % 2 == 0 { &["0..1", "1..2", "2..4"] } else { &["0..2", "2..3", "3..4"] };
        let swarm = LocalSwarm::start(&goldens.model(), spans, ExecutorConfig::default()).await?;
        for (mode, relay, blocks) in modes(&goldens)
            .into_iter()
            .flat_map(|mode| [(mode, RelayMode::Chain, 1 + number as u32 % 2), (mode, RelayMode::Star, 2)])
        {
            let what = format!("{family}, {mode}, {relay}, {blocks} here");
            let [all, some] = models(&goldens, &swarm, mode, blocks, relay)?;
            let input = PassInput {
                lengths: vec![9, 9, 9],
                text: swarm.local.embed(&Goldens::input_ids()?.concat())?,
                read_rows: Some(vec![4, 20]),
                tables: all.tables.clone(),
            };
            let grad = vec![0.01; 2 * swarm.hidden];
            let (expected, trace) = all.sequence.forward(input.clone(), true).await?;
            let expected_back = all.sequence.backward(trace, grad.clone()).await?;
            let (got, trace) = some.sequence.forward(input, true).await?;
            assert!(trace.hops().all(|hop| hop.span.start() >= blocks), "{what}: no server is asked for them");
            let back = some.sequence.backward(trace, grad).await?;
            assert_eq!(got, expected, "{what}");
            assert_eq!(by_block(&back), by_block(&expected_back), "{what}: tables");
            assert_eq!(back.prefix, expected_back.prefix, "{what}: prefix");
            if mode != "bare" {
                let prefix = |model: RemoteModel| async move {
                    let tables = model.tables.clone().map(|tables| (*tables).clone());
                    let tables = tables.ok_or_else(|| anyhow::anyhow!("no tables"))?;
                    Ok::<_, anyhow::Error>(model.as_prefix(&tables).await?)
                };
                let (got, expected) = (prefix(some).await?, prefix(all).await?);
                let values = |tables: petals_client::PromptTables| {
                    tables.table(petals_client::Table::KeysValues).map(<[f32]>::to_vec)
                };
                assert_eq!(values(got), values(expected), "{what}: as a prefix");
            }
        }
    }
    Ok(())
}

fn text(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|n| (seed * 31 + n * n * 7 + n * 3) % 61).collect()
}

/// Logits of a session whose texts go on, go back, fork and change places.
async fn wander(model: RemoteModel) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut session = TextSession::new(model, 3, 160);
    let mut seen = vec![session.append(&[text(1, 90), text(2, 4), Vec::new()]).await?];
    seen.push(session.append(&[text(3, 2), vec![7], vec![8, 9]]).await?);
    session.rollback(&[85, 3, 2]);
    session.reorder(&[0, 1, 0]);
    seen.push(session.append(&[vec![5], vec![6], vec![7]]).await?);
    session.reorder(&[2, 2, 1]);
    seen.push(session.append_and_score(&[vec![1, 2], vec![3], vec![4]]).await?);
    // So far that a window has left it behind.
    session.rollback(&[3, 86, 1]);
    seen.push(session.append(&[text(4, 20), Vec::new(), text(5, 70)]).await?);
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_wander_alike_with_windows_and_without() -> anyhow::Result<()> {
    for family in ["llama-gqa", "mistral-window", "gemma3-text"] {
        let goldens = Goldens::load(family)?;
        let blocks = Checkpoint::open(goldens.model())?.blocks().end();
        let middle = format!("1..{}", blocks - 1);
        let last = format!("{}..{blocks}", blocks - 1);
        let swarm = LocalSwarm::start(&goldens.model(), &["0..1", &middle, &last], ExecutorConfig::default()).await?;
        for (mode, relay) in
            modes(&goldens).into_iter().flat_map(|mode| [(mode, RelayMode::Chain), (mode, RelayMode::Star)])
        {
            let [all, some] = models(&goldens, &swarm, mode, 1, relay)?;
            let (got, expected) = (wander(some).await?, wander(all).await?);
            for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
                petals_e2e::assert_close(&format!("{family}, {mode}, {relay}, step {step}"), got, expected, 1e-4);
            }
        }
    }
    Ok(())
}

#[test]
fn commands_do_without_servers_of_the_first_blocks() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    // Nobody has the first two blocks, and nobody can see what enters them.
    let rest = ProcessSwarm::start(&goldens.model(), &["2..3", "3..4"])?;
    let whole = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let here = ["--local-blocks", "0..2"];
    for mode in ["ptune", "replace", "add"] {
        let run = |swarm: &ProcessSwarm, name: &str, more: &[&str]| {
            let out = directory.path().join(format!("{mode}-{name}"));
            training(swarm, &goldens, mode, "causal-lm", &out)?.args(more).losses()
        };
        assert_eq!(run(&rest, "here", &here)?, run(&whole, "servers", &[])?, "{mode}");
    }
    let prompt = goldens.value("prompt_text").as_str().unwrap_or_default();
    for mode in ["bare", "ptune", "replace", "add"] {
        let mut tune = rest.tune("generate")?.args(&["--prompt", prompt, "--max-new-tokens", "32"]).args(&here);
        if mode != "bare" {
            tune = tune.path("--adapter", &goldens.path(&format!("init-{mode}")));
        }
        let events = tune.events()?;
        let ids = events.last().map(|event| event["token_ids"].clone()).unwrap_or_default();
        assert_eq!(&ids, goldens.value(&format!("generate.{mode}")), "{mode}");
    }
    let request = json!({"model": "model", "prompt": prompt, "max_tokens": 32, "temperature": 0});
    let texts = [(&rest, &here[..]), (&whole, &[][..])].map(|(swarm, more)| -> anyhow::Result<_> {
        let api = ApiServer::start(swarm.tune("serve")?.args(more))?;
        let text = api.ask("/v1/completions", &request)?["choices"][0]["text"].clone();
        api.stop()?;
        Ok(text)
    });
    let [got, expected] = texts;
    assert_eq!(got?, expected?);
    Ok(())
}

#[test]
fn spans_that_a_client_cannot_run_are_named() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    for span in ["1..2", "0..4", "0..9"] {
        let output = swarm
            .tune("generate")?
            .args(&["--prompt", "a", "--max-new-tokens", "1", "--local-blocks", span])
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && stderr.contains("0..1 to 0..3") && stderr.contains(span),
            "{stderr}"
        );
    }
    let output =
        swarm.tune("generate")?.args(&["--prompt", "a", "--max-new-tokens", "1", "--trusted-first", "2"]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("--trusted"), "{stderr}");
    Ok(())
}
