//! Adapters of every kind through a swarm: gradients and curves against torch's, sessions against whole forwards, and files that PEFT saved.

use std::path::Path;
use std::sync::Arc;

use petals_client::{
    AdamW, Adapter, PromptTables, PromptTuner, RelayMode, RemoteModel, SequenceConfig, Span, TableShape, TextSession,
    TunerConfig,
};
use petals_e2e::{FAMILIES, Goldens, LocalSwarm, ProcessSwarm, assert_close, assert_curves_close};
use petals_node::ExecutorConfig;
use petals_protocol::{Injection, Module, Modules, PassLayout, Refusal, Response, Tensor, WeightChange, WireDtype};

use crate::gradients::examples;
use crate::hostile::{Stranger, forward, layout, rows};

const KINDS: [&str; 3] = ["lora", "ia3", "prefix"];
const SPLITS: [&[&str]; 3] = [&["0..4"], &["0..2", "2..4"], &["0..1", "1..3", "3..4"]];

fn folder(kind: &str) -> String {
    format!("adapters/peft-{kind}")
}

/// What was recorded of adapters of a family.
fn recorded(family: &str) -> anyhow::Result<Goldens> {
    Goldens::load(&format!("{family}/adapters"))
}

/// What PEFT saved, for a task.
fn tables(goldens: &Goldens, swarm: &LocalSwarm, kind: &str, task: &str) -> anyhow::Result<PromptTables> {
    let model = swarm.adapted();
    let given = Adapter::load(&goldens.path(&folder(kind)), &model)?.tables;
    let labels = given.shape().labels.filter(|_| task == "seq-cls");
    let mut tables = PromptTables::zeros(TableShape { labels, ..*given.shape() });
    tables.start_from(&given)?;
    Ok(tables)
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_of_what_peft_saved_equal_torchs_over_one_two_and_three_servers() -> anyhow::Result<()> {
    for (family, spans) in FAMILIES.into_iter().flat_map(|family| SPLITS.map(|spans| (family, spans))) {
        let (goldens, expected) = (Goldens::load(family)?, recorded(family)?);
        let swarm = LocalSwarm::start(&goldens.model(), spans, ExecutorConfig::default()).await?;
        let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
        for (kind, task) in KINDS.into_iter().flat_map(|kind| ["causal-lm", "seq-cls"].map(|task| (kind, task))) {
            let what = format!("{family} over {spans:?}, {kind}, {task}");
            let tables = tables(&goldens, &swarm, kind, task)?;
            // What travels is what was recorded, so that the file was understood.
            let all = tables.tables_for(Span::new(0, 4)?).unwrap_or_default();
            assert_close(&what, &all, &expected.tensor(&format!("tables.{kind}")), 1e-6);
            let shape = *tables.shape();
            let (optimizer, tuning) = (AdamW::new(&shape, 0.0), TunerConfig::default());
            let tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, tuning);
            let (gradients, score) = tuner.gradients(&examples(&goldens, task)?).await?;
            let loss = expected.value(&format!("loss.{kind}.{task}")).as_f64().unwrap_or(f64::NAN);
            let got = score.loss().unwrap_or(f64::NAN);
            assert!((got - loss).abs() <= 1e-5 * loss, "{what}: loss {got} for {loss}");
            // Gradients have the layout of tables, but for the factor of `B`, which divides where it multiplied.
            let mut travelled = PromptTables::zeros(TableShape { scale: shape.scale.recip(), ..shape });
            for table in shape.tables() {
                if let Some((own, gradient)) = travelled.table_mut(table).zip(gradients.table(table)) {
                    own.copy_from_slice(gradient);
                }
            }
            let got = travelled.tables_for(Span::new(0, 4)?).unwrap_or_default();
            assert_close(&what, &got, &expected.tensor(&format!("grad.{kind}.{task}")), 1e-4);
        }
    }
    Ok(())
}

#[test]
fn loss_curves_equal_torchs_for_every_kind_and_task() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let splits: [(&str, &[&str]); 3] =
        [("llama-gqa", &["0..1", "1..3", "3..4"]), ("mistral", &["0..4"]), ("qwen3", &["0..2", "2..4"])];
    for (family, spans) in splits {
        let (goldens, expected) = (Goldens::load(family)?, recorded(family)?);
        let swarm = ProcessSwarm::start(&goldens.model(), spans)?;
        for (kind, task) in KINDS.into_iter().flat_map(|kind| ["causal-lm", "seq-cls"].map(|task| (kind, task))) {
            let out = directory.path().join(format!("{family}-{kind}-{task}"));
            let losses = training(&swarm, &goldens, kind, task, &out)?.losses()?;
            let expected = expected.numbers(&format!("curve.{kind}.{task}"));
            assert_curves_close(&format!("{family}, {kind}, {task}"), &losses, &expected, 1e-3);
        }
    }
    Ok(())
}

/// The run that `curve.<kind>.<task>` records. Rank, alpha and targets are those of the adapter that it starts from.
fn training(
    swarm: &ProcessSwarm,
    goldens: &Goldens,
    kind: &str,
    task: &str,
    out: &Path,
) -> anyhow::Result<petals_e2e::Tune> {
    let options = goldens.value("optimiser");
    let text = |name: &str| options[name].to_string().trim_matches('"').to_owned();
    let data = Goldens::data(if task == "seq-cls" { "train-cls.jsonl" } else { "train-causal.jsonl" });
    let rows: &[&str] = if kind == "prefix" { &["--prefix-len", "5"] } else { &[] };
    let run = swarm.tune("train")?.args(&["--mode", kind]).args(rows);
    Ok(run
        .args(&["--task", task, "--no-shuffle", "--max-length", "64"])
        .args(&["--steps", &text("steps"), "--lr", &text("lr"), "--batch-size", &text("batch_size")])
        .args(&["--weight-decay", &text("weight_decay"), "--clip", &text("clip")])
        .args(&["--schedule", &text("schedule"), "--warmup", &text("warmup")])
        .path("--data", &data)
        .path("--init-from", &goldens.path(&folder(kind)))
        .path("--out", out))
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_sessions_with_adapters_equal_recorded_logits() -> anyhow::Result<()> {
    for (family, spans) in ["qwen3", "llama-gqa", "mistral"].into_iter().zip(SPLITS) {
        let (goldens, expected) = (Goldens::load(family)?, recorded(family)?);
        let swarm = LocalSwarm::start(&goldens.model(), spans, ExecutorConfig::default()).await?;
        let rows = Goldens::input_ids()?;
        for (kind, relay) in KINDS.into_iter().flat_map(|kind| [(kind, RelayMode::Chain), (kind, RelayMode::Star)]) {
            let sequence = Arc::new(swarm.sequence(SequenceConfig { relay, ..SequenceConfig::default() }));
            let tables = Some(Arc::new(tables(&goldens, &swarm, kind, "causal-lm")?));
            let model = RemoteModel::new(sequence, swarm.local.clone()).with_tables(tables);
            let mut session = TextSession::new(model, rows.len(), 16);
            let vocabulary = swarm.local.config().vocab_size;
            let mut got = vec![Vec::new(); rows.len()];
            for range in [0..4, 4..5, 5..9] {
                let parts: Vec<Vec<u32>> = rows.iter().map(|row| row[range.clone()].to_vec()).collect();
                let logits = session.append_and_score(&parts).await?;
                for (all, logits) in got.iter_mut().zip(logits.chunks_exact(range.len() * vocabulary)) {
                    all.extend_from_slice(logits);
                }
            }
            let what = format!("{family} over {spans:?}, {kind}, {relay:?}");
            assert_close(&what, &got.concat(), &expected.tensor(&format!("logits.{kind}")), 1e-4);
        }
    }
    Ok(())
}

#[test]
fn servers_that_are_killed_change_nothing_for_any_kind() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let expected = recorded("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    for (kind, kill_at) in KINDS.into_iter().zip([3, 7, 12]) {
        let mut swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4", "0..3", "1..4"])?;
        let run = training(&swarm, &goldens, kind, "causal-lm", &directory.path().join(kind))?;
        let mut killed = 0;
        let (losses, finished) = run.watch(|event| {
            if event["event"] == "step" && [kill_at, kill_at + 3].contains(&event["step"].as_u64().unwrap_or(0)) {
                let _ = swarm.servers[killed].kill();
                killed += 1;
            }
            true
        })?;
        assert!(finished && killed == 2, "{kind}: finished {finished}, killed {killed}");
        assert_curves_close(kind, &losses, &expected.numbers(&format!("curve.{kind}.causal-lm")), 1e-3);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn users_with_different_adapters_at_once_get_what_each_gets_alone() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let expected = recorded("qwen3")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
    let rows = Goldens::input_ids()?;
    // Every kind twice, so that some rows of a batch share their tables.
    let users = KINDS.into_iter().cycle().take(2 * KINDS.len()).map(|kind| {
        let (sequence, rows) = (sequence.clone(), rows.clone());
        let (goldens, swarm) = (&goldens, &swarm);
        async move {
            let tables = Some(Arc::new(tables(goldens, swarm, kind, "causal-lm")?));
            let model = RemoteModel::new(sequence, swarm.local.clone()).with_tables(tables);
            let mut session = TextSession::new(model, rows.len(), 16);
            let vocabulary = swarm.local.config().vocab_size;
            let mut got = vec![Vec::new(); rows.len()];
            for at in 0..9 {
                let parts: Vec<Vec<u32>> = rows.iter().map(|row| vec![row[at]]).collect();
                let logits = session.append_and_score(&parts).await?;
                for (all, logits) in got.iter_mut().zip(logits.chunks_exact(vocabulary)) {
                    all.extend_from_slice(logits);
                }
            }
            anyhow::Ok((kind, got.concat()))
        }
    });
    for (kind, got) in futures::future::try_join_all(users).await? {
        assert_close(kind, &got, &expected.tensor(&format!("logits.{kind}")), 1e-4);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn senseless_changes_of_weights_are_refused_and_the_stream_goes_on() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
    let mut stranger = Stranger::greeted(&swarm).await?;
    let d = swarm.hidden;
    let all: Modules = Module::ALL.into_iter().collect();
    let plain = || layout((1, 2), &[1]);
    let low_rank = |rank, modules| PassLayout { weights: WeightChange::LowRank { rank, modules }, ..plain() };
    let scaled = |modules| PassLayout { weights: WeightChange::Scales { modules }, ..plain() };
    let no_prefix = PassLayout { injection: Injection::KeysValues, ..plain() };
    for wrong in [low_rank(0, all), low_rank(5000, all), low_rank(1, Modules::default()), scaled(all), no_prefix] {
        let refusal = stranger.refusal(&forward(wrong.clone()), &[rows(1, d, 0.1)]).await?;
        assert!(matches!(refusal, Refusal::BadRequest { .. }), "{wrong:?}: {refusal}");
    }
    // The rank is possible, but 4096 rows for each matrix are more than a request may have.
    let huge = PassLayout { span: Span::new(0, 4)?, ..low_rank(4096, all) };
    let refusal = stranger.refusal(&forward(huge), &[rows(1, d, 0.1)]).await?;
    assert!(matches!(refusal, Refusal::TooLarge { .. } | Refusal::BadShape { .. }), "{refusal}");
    // Tables of another size than the layout says, missing, and not finite.
    let sensible = low_rank(2, all);
    let values = sensible.block_values(swarm.local.config().block_widths());
    let table = |count: usize, value: f32| Tensor::from_f32(WireDtype::F32, &[1, count], &vec![value; count]);
    for (tensors, shape) in [
        (vec![rows(1, d, 0.1), table(values - 1, 0.1)], true),
        (vec![rows(1, d, 0.1)], true),
        (vec![rows(1, d, 0.1), table(values, f32::NAN)], false),
    ] {
        let refusal = stranger.refusal(&forward(sensible.clone()), &tensors).await?;
        let expected = if shape {
            matches!(refusal, Refusal::BadShape { .. })
        } else {
            matches!(refusal, Refusal::NotFinite { .. })
        };
        assert!(expected, "{refusal}");
    }
    let good = stranger.ask(&forward(sensible), &[rows(1, d, 0.1), table(values, 0.1)]).await?;
    assert!(matches!(good, Response::Forward(_)), "{good:?}");
    Ok(())
}
