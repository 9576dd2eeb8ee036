//! Tables that networks make: curves against torch's with PEFT's encoders, and adapters that PEFT saved of them.

use std::fs;
use std::sync::Arc;

use petals_client::{
    AdamW, Adapter, Aids, Encoder, Example, Injection, PromptTables, PromptTuner, RemoteModel, Reparam, SequenceConfig,
    Table, TableShape, Target, TunerConfig, WeightChange,
};
use petals_e2e::{Goldens, LocalSwarm, ProcessSwarm, assert_close, assert_curves_close};
use petals_node::ExecutorConfig;
use safetensors::SafeTensors;
use serde_json::Value;

/// The tensors of a file of goldens.
fn tensors(goldens: &Goldens, name: &str) -> anyhow::Result<Vec<(String, Vec<f32>)>> {
    let bytes = fs::read(goldens.path("encoders").join(name))?;
    let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let file = SafeTensors::deserialize(&bytes)?;
    Ok(file.tensors().into_iter().map(|(name, tensor)| (name, floats(tensor.data()))).collect())
}

/// The lines of the causal-lm data.
fn examples(goldens: &Goldens) -> Vec<Example> {
    let numbers = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_u64).collect::<Vec<_>>();
    let example = |line: &Value| Example {
        tokens: numbers(&line["ids"]).into_iter().map(|id| id as u32).collect(),
        target: Target::NextToken { from: line["labelled_from"].as_u64().unwrap_or(1) as usize },
    };
    goldens.value("tokens.causal-lm").as_array().into_iter().flatten().map(example).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn curves_of_tables_that_networks_make_equal_torchs() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let recorded: Value = serde_json::from_str(&fs::read_to_string(goldens.path("encoders/curves.json"))?)?;
    let option = |name: &str| recorded["optimiser"][name].as_f64().unwrap_or(f64::NAN);
    let swarm = LocalSwarm::start(&goldens.model(), &["0..1", "1..4"], ExecutorConfig::default()).await?;
    let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
    let examples = examples(&goldens);
    for kind in ["mlp", "p-tuning-mlp", "p-tuning-lstm", "prefix-projection"] {
        let (injection, table) = match kind {
            "prefix-projection" => (Injection::KeysValues, Table::KeysValues),
            _ => (Injection::None, Table::Input),
        };
        let (blocks, widths) = (swarm.blocks.len(), swarm.local.config().block_widths());
        let weights = WeightChange::None;
        let shape = TableShape { injection, weights, scale: 1.0, blocks, prefix_len: 5, widths, labels: None };
        let mut tables = PromptTables::zeros(shape);
        let width = recorded["curves"][kind]["width"].as_u64().map(|width| width as usize);
        let mut encoder = Encoder::new(Reparam { kind: kind.parse()?, width }, &mut tables, 0)?;
        for (name, values) in tensors(&goldens, &format!("{kind}.safetensors"))? {
            let own = encoder.parameter_mut(table, &name).unwrap_or_else(|| panic!("{kind} has no {name}"));
            own.copy_from_slice(&values);
        }
        encoder.make(&mut tables);
        let optimizer = AdamW::new(&shape, option("weight_decay"));
        let config = TunerConfig { clip: option("clip"), ..TunerConfig::default() };
        let tuner = PromptTuner::new(sequence.clone(), swarm.local.clone(), tables, optimizer, config);
        let mut tuner = tuner.with_aids(Aids { encoder: Some(encoder), average: None });
        let (mut losses, batch) = (Vec::new(), option("batch_size") as usize);
        for step in 0..10 {
            let at = |i: usize| examples[(step * batch + i) % examples.len()].clone();
            let batch: Vec<Example> = (0..batch).map(at).collect();
            losses.push(tuner.step(&batch, option("lr")).await?.loss);
        }
        let expected = recorded["curves"][kind]["losses"].as_array().cloned().unwrap_or_default();
        let expected: Vec<f64> = expected.iter().filter_map(Value::as_f64).collect();
        assert_curves_close(kind, &losses, &expected, 1e-3);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peft_made_with_an_encoder_is_run_as_peft_runs_it() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let recorded = tensors(&goldens, "logits.safetensors")?;
    let expected = |kind: &str| recorded.iter().find(|(name, _)| name == kind).map(|(_, values)| values.clone());
    let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
    let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
    let model = swarm.adapted();
    for kind in ["p-tuning-mlp", "p-tuning-lstm", "prefix-projection"] {
        let tables = Adapter::load(&goldens.path(&format!("encoders/peft-{kind}")), &model)?.tables;
        let remote = RemoteModel::new(sequence.clone(), swarm.local.clone()).with_tables(Some(Arc::new(tables)));
        let logits = remote.logits(&Goldens::input_ids()?).await?;
        assert_close(kind, &logits, &expected(kind).unwrap_or_default(), 1e-4);
    }
    Ok(())
}

#[test]
fn runs_start_from_what_peft_made_with_an_encoder() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let directory = tempfile::tempdir()?;
    for (kind, mode, task, data) in [
        ("p-tuning-mlp", "ptune", "causal-lm", "train-causal.jsonl"),
        ("p-tuning-lstm", "ptune", "causal-lm", "train-causal.jsonl"),
        ("prefix-projection", "prefix", "causal-lm", "train-causal.jsonl"),
        ("p-tuning-seq-cls", "ptune", "seq-cls", "train-cls.jsonl"),
    ] {
        let (from, data) = (goldens.path(&format!("encoders/peft-{kind}")), Goldens::data(data));
        let loss = |events: &[Value]| {
            events.iter().find(|event| event["event"] == "eval").and_then(|event| event["loss"].as_f64())
        };
        let run = swarm.tune("train")?.args(&["--mode", mode, "--prefix-len", "5", "--task", task, "--steps", "1"]);
        let run = run.args(&["--eval-first"]).path("--data", &data).path("--eval", &data).path("--init-from", &from);
        let events = run.path("--out", &directory.path().join(kind)).events()?;
        let first = loss(&events).unwrap_or(f64::NAN);
        if task == "causal-lm" {
            // A run begins at what is measured of the adapter itself.
            let measured = swarm.tune("eval")?.path("--adapter", &from).path("--data", &data).events()?;
            let measured = measured.iter().find_map(|event| event["loss"].as_f64()).unwrap_or(f64::NAN);
            assert!((first - measured).abs() < 1e-4 * measured, "{kind}: {first} for {measured}");
        }
        assert!(first.is_finite(), "{kind}: {events:?}");
    }
    Ok(())
}
