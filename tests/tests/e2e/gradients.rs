//! Losses and gradients of every table against torch's autograd, whatever the number of servers.

use std::sync::Arc;

use petals_client::{
    AdamW, AdaptedModel, Adapter, Example, PromptTables, PromptTuner, SequenceConfig, Table, TableShape, Target,
    TunerConfig,
};
use petals_e2e::{FAMILIES, Goldens, LocalSwarm, assert_close};
use petals_model::Checkpoint;
use petals_node::ExecutorConfig;

const TASKS: [&str; 2] = ["causal-lm", "seq-cls"];
const MODES: [&str; 3] = ["ptune", "replace", "add"];
const SPLITS: [&[&str]; 3] = [&["0..4"], &["0..2", "2..4"], &["0..1", "1..3", "3..4"]];

fn examples(goldens: &Goldens, task: &str) -> anyhow::Result<Vec<Example>> {
    let (lengths, labels) = (goldens.ids("lengths"), goldens.ids("labels"));
    let rows = Goldens::input_ids()?.into_iter().zip(lengths).zip(labels);
    Ok(rows
        .map(|((row, length), label)| {
            let target = if task == "seq-cls" { Target::Class(label as usize) } else { Target::NextToken { from: 1 } };
            Example { tokens: row[..length as usize].to_vec(), target }
        })
        .collect())
}

fn tables(goldens: &Goldens, swarm: &LocalSwarm, mode: &str, task: &str) -> anyhow::Result<PromptTables> {
    let checkpoint = Checkpoint::open(goldens.model())?;
    let model = AdaptedModel {
        id: swarm.model.clone(),
        name_or_path: "golden".into(),
        blocks: swarm.blocks.len(),
        hidden: swarm.hidden,
        attention_heads: checkpoint.config().num_attention_heads,
    };
    let given = Adapter::load(&goldens.path(&format!("init-{mode}")), &model)?.tables;
    let labels = given.shape().labels.filter(|_| task == "seq-cls");
    let mut tables = PromptTables::zeros(TableShape { labels, ..*given.shape() });
    tables.start_from(&given)?;
    Ok(tables)
}

async fn check(family: &str, spans: &[&str], executor: ExecutorConfig, tuning: TunerConfig) -> anyhow::Result<()> {
    let goldens = Goldens::load(family)?;
    let swarm = LocalSwarm::start(&goldens.model(), spans, executor).await?;
    let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
    for mode in MODES {
        for task in TASKS {
            let tables = tables(&goldens, &swarm, mode, task)?;
            let optimizer = AdamW::new(tables.shape(), 0.0);
            let tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, tuning.clone());
            let (gradients, score) = tuner.gradients(&examples(&goldens, task)?).await?;
            let what = format!("{family} over {spans:?}, {mode}, {task}");
            let expected = goldens.value(&format!("loss.{mode}.{task}")).as_f64().unwrap_or(f64::NAN);
            let loss = score.loss().unwrap_or(f64::NAN);
            assert!((loss - expected).abs() <= 1e-5 * expected.abs(), "{what}: loss {loss} for {expected}");
            for (table, name) in [(Table::Input, "P"), (Table::Deep, "Q"), (Table::Score, "score")] {
                let Some(got) = gradients.table(table) else { continue };
                assert_close(
                    &format!("{what}: gradient of {name}"),
                    got,
                    &goldens.tensor(&format!("grad.{mode}.{task}.{name}")),
                    1e-4,
                );
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_equal_torchs_for_every_family_over_one_two_and_three_servers() -> anyhow::Result<()> {
    for family in FAMILIES {
        for spans in SPLITS {
            check(family, spans, ExecutorConfig::default(), TunerConfig::default()).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_micro_batch_split_changes_nothing() -> anyhow::Result<()> {
    let single = TunerConfig { micro_batch_tokens: 1, in_flight: 3, ..TunerConfig::default() };
    check("llama-gqa", SPLITS[1], ExecutorConfig::default(), single).await
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_room_for_a_stash_give_the_same_gradients() -> anyhow::Result<()> {
    let no_stash = ExecutorConfig { stash_bytes: 0, ..ExecutorConfig::default() };
    check("qwen3", SPLITS[2], no_stash, TunerConfig::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn overlapping_spans_are_used_in_part() -> anyhow::Result<()> {
    check("mistral", &["0..3", "1..4"], ExecutorConfig::default(), TunerConfig::default()).await
}
