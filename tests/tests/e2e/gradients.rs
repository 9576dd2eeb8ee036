//! Losses and gradients of every table against torch's autograd, whatever the number of servers.

use std::sync::Arc;

use petals_client::{
    AdamW, AdaptedModel, Adapter, Example, PromptTables, PromptTuner, RelayMode, SequenceConfig, Table, TableShape,
    Target, TrafficCount, TunerConfig, WireDtype,
};
use petals_e2e::{Goldens, LocalSwarm, assert_close};
use petals_model::Checkpoint;
use petals_node::ExecutorConfig;

const TASKS: [&str; 2] = ["causal-lm", "seq-cls"];
const MODES: [&str; 3] = ["ptune", "replace", "add"];
const SPLITS: [&[&str]; 3] = [&["0..4"], &["0..2", "2..4"], &["0..1", "1..3", "3..4"]];

pub(crate) fn examples(goldens: &Goldens, task: &str) -> anyhow::Result<Vec<Example>> {
    let (lengths, labels) = (goldens.ids("lengths"), goldens.ids("labels"));
    let rows = Goldens::input_ids()?.into_iter().zip(lengths).zip(labels);
    Ok(rows
        .map(|((row, length), label)| {
            let target = if task == "seq-cls" { Target::Class(label as usize) } else { Target::NextToken { from: 1 } };
            Example { tokens: row[..length as usize].to_vec(), target }
        })
        .collect())
}

pub(crate) fn tables(goldens: &Goldens, swarm: &LocalSwarm, mode: &str, task: &str) -> anyhow::Result<PromptTables> {
    let checkpoint = Checkpoint::open(goldens.model())?;
    let model = AdaptedModel::new(swarm.model.clone(), "golden".into(), checkpoint.config());
    let given = Adapter::load(&goldens.path(&format!("init-{mode}")), &model)?.tables;
    let labels = given.shape().labels.filter(|_| task == "seq-cls");
    let mut tables = PromptTables::zeros(TableShape { labels, ..*given.shape() });
    tables.start_from(&given)?;
    Ok(tables)
}

/// Losses and gradients of every mode and task within what the wire dtype allows. Returns what each step exchanged.
pub(crate) async fn check(
    family: &str,
    spans: &[&str],
    executor: ExecutorConfig,
    config: SequenceConfig,
    tuning: TunerConfig,
) -> anyhow::Result<Vec<TrafficCount>> {
    let goldens = Goldens::load(family)?;
    let swarm = LocalSwarm::start(&goldens.model(), spans, executor).await?;
    let wire_dtype = config.wire_dtype;
    let allowed = tolerances(wire_dtype);
    let sequence = Arc::new(swarm.sequence(config));
    let mut counts = Vec::new();
    for mode in MODES {
        for task in TASKS {
            let tables = tables(&goldens, &swarm, mode, task)?;
            let optimizer = AdamW::new(tables.shape(), 0.0);
            let tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, tuning.clone());
            let before = sequence.traffic();
            let (gradients, score) = tuner.gradients(&examples(&goldens, task)?).await?;
            counts.push(sequence.traffic().since(&before));
            let what = format!("{family} over {spans:?}, {mode}, {task}, {wire_dtype} on the wire");
            let expected = goldens.value(&format!("loss.{mode}.{task}")).as_f64().unwrap_or(f64::NAN);
            let loss = score.loss().unwrap_or(f64::NAN);
            assert!((loss - expected).abs() <= allowed.loss * expected.abs(), "{what}: loss {loss} for {expected}");
            for (table, name) in [(Table::Input, "P"), (Table::Deep, "Q"), (Table::Score, "score")] {
                let Some(got) = gradients.table(table) else { continue };
                assert_close(
                    &format!("{what}: gradient of {name}"),
                    got,
                    &goldens.tensor(&format!("grad.{mode}.{task}.{name}")),
                    allowed.gradients,
                );
            }
        }
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_equal_torchs_for_every_family_over_one_two_and_three_servers() -> anyhow::Result<()> {
    for family in Goldens::families()? {
        for spans in SPLITS {
            check(&family, spans, ExecutorConfig::default(), SequenceConfig::default(), TunerConfig::default()).await?;
        }
    }
    Ok(())
}

/// How far results may be from torch's over three hops.
pub(crate) struct Tolerances {
    /// Relative to the largest value.
    pub(crate) logits: f32,
    /// Relative.
    pub(crate) loss: f64,
    /// Relative to a table's largest value.
    pub(crate) gradients: f32,
}

/// About twice the largest difference over all families, modes and tasks; the median is far below. The models have
/// random weights and 32 values a row, which makes them more sensitive than trained ones.
pub(crate) fn tolerances(dtype: WireDtype) -> Tolerances {
    let (logits, loss, gradients) = match dtype {
        WireDtype::F32 => (1e-4, 1e-5, 1e-4),
        WireDtype::F16 => (2e-3, 2e-3, 2e-2),
        WireDtype::Bf16 => (2e-2, 1e-2, 6e-2),
        WireDtype::Int8 => (8e-2, 1.5e-1, 3e-1),
    };
    Tolerances { logits, loss, gradients }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_travel_through_the_client_give_the_same_gradients() -> anyhow::Result<()> {
    for spans in &SPLITS[1..] {
        let star = SequenceConfig { relay: RelayMode::Star, ..SequenceConfig::default() };
        check("qwen2", spans, ExecutorConfig::default(), star, TunerConfig::default()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_micro_batch_split_changes_nothing() -> anyhow::Result<()> {
    let single = TunerConfig { micro_batch_tokens: Some(1), in_flight: Some(3), ..TunerConfig::default() };
    check("llama-gqa", SPLITS[1], ExecutorConfig::default(), SequenceConfig::default(), single).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_room_for_a_stash_give_the_same_gradients() -> anyhow::Result<()> {
    let no_stash = ExecutorConfig { stash_bytes: 0, ..ExecutorConfig::default() };
    check("qwen3", SPLITS[2], no_stash, SequenceConfig::default(), TunerConfig::default()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_spans_are_used_in_part() -> anyhow::Result<()> {
    let spans = ["0..3", "1..4"];
    let (executor, config) = (ExecutorConfig::default(), SequenceConfig::default());
    check("mistral", &spans, executor, config, TunerConfig::default()).await.map(drop)
}
