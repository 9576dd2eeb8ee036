//! Adapters of models whose projections are several matrices in one: what PEFT saved of them, what is saved here, and what they do not have.

use std::path::Path;
use std::sync::Arc;

use petals_client::{
    AdaptedModel, Adapter, Injection, PromptTables, RemoteModel, SequenceConfig, Span, TableGradients, TableShape,
    TextRules, WeightChange,
};
use petals_e2e::{Goldens, LocalSwarm, ProcessSwarm, Tune, assert_close, assert_curves_close};
use petals_model::{Checkpoint, ModelConfig};
use petals_node::ExecutorConfig;
use petals_protocol::{Module, PassLayout, Response, Tensor, WireDtype};

use crate::hostile::{Stranger, forward, layout, rows};
use crate::logits::logits;

/// One of each way in which they lie, with one, some and all key heads.
const FUSED: [&str; 8] =
    ["bloom-3-heads", "falcon-7b", "falcon-11b", "falcon-40b", "falcon-rw", "gpt-neox", "phi3", "glm4"];

/// What was recorded of adapters of a family.
fn recorded(family: &str) -> anyhow::Result<Goldens> {
    Goldens::load(&format!("{family}/adapters"))
}

fn adapted(goldens: &Goldens) -> anyhow::Result<AdaptedModel> {
    let checkpoint = Checkpoint::open(goldens.model())?;
    Ok(AdaptedModel::new(checkpoint.model_id(None)?, String::new(), checkpoint.config()))
}

/// The recorded tables of a kind, which are one for each matrix.
fn tables(recorded: &Goldens, config: &ModelConfig, kind: &str) -> anyhow::Result<PromptTables> {
    let number = |name: &str| recorded.value(name).as_f64().unwrap_or(f64::NAN);
    let (injection, prefix_len) = if kind == "prefix" { (Injection::KeysValues, 5) } else { (Injection::None, 0) };
    let (weights, scale) = match kind {
        "lora" => {
            let change = WeightChange::LowRank { rank: number("rank") as u32, modules: config.adaptable() };
            (change, (number("alpha") / number("rank")) as f32)
        }
        "ia3" => (WeightChange::Scales { modules: config.scalable() }, 1.0),
        _ => (WeightChange::None, 1.0),
    };
    let (blocks, widths) = (config.num_hidden_layers, config.block_widths());
    let shape = TableShape { injection, weights, scale, blocks, prefix_len, widths, labels: None };
    // Gradients have the layout of tables, but for the factor of `B`, which multiplies where it divides.
    let mut laid_out = TableGradients::zeros(TableShape { scale: scale.recip(), ..shape });
    let values = recorded.tensor(&format!("tables.{kind}"));
    laid_out.add_tables(Span::new(0, 4)?, &values)?;
    let mut tables = PromptTables::zeros(shape);
    for table in shape.tables() {
        if let Some((own, values)) = tables.table_mut(table).zip(laid_out.table(table)) {
            own.copy_from_slice(values);
        }
    }
    assert_close(kind, &tables.tables_for(Span::new(0, 4)?).unwrap_or_default(), &values, 1e-6);
    Ok(tables)
}

/// Saves tables as an adapter in a folder.
fn save(tables: &PromptTables, model: &AdaptedModel, to: &Path) -> anyhow::Result<()> {
    Ok(Adapter::new(model, tables.clone(), None, TextRules::default(), 0).save(to, model)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_of_fused_projections_have_torchs_logits_whoever_saved_them() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let ids = Goldens::input_ids()?;
    for family in FUSED {
        let (goldens, expected) = (Goldens::load(family)?, recorded(family)?);
        let swarm = LocalSwarm::start(&goldens.model(), &["0..2", "2..4"], ExecutorConfig::default()).await?;
        let model = RemoteModel::new(Arc::new(swarm.sequence(SequenceConfig::default())), swarm.local.clone());
        let given = Adapter::load(&goldens.path("adapters/peft-lora"), &swarm.adapted())?.tables;
        let mut of_peft = PromptTables::zeros(TableShape { labels: None, ..*given.shape() });
        of_peft.start_from(&given)?;
        let got = model.clone().with_tables(Some(of_peft.into())).logits(&ids).await?;
        assert_close(&format!("{family}, PEFT's"), &got, &expected.tensor("logits.peft-lora"), 1e-4);
        for kind in ["lora", "ia3", "prefix"] {
            let tables = tables(&expected, swarm.local.config(), kind)?;
            let out = directory.path().join(format!("{family}-{kind}"));
            save(&tables, &swarm.adapted(), &out)?;
            let loaded = Adapter::load(&out, &swarm.adapted())?.tables;
            assert_eq!(loaded, tables, "{family}, {kind}");
            let got = model.clone().with_tables(Some(loaded.into())).logits(&ids).await?;
            assert_close(&format!("{family}, {kind}"), &got, &expected.tensor(&format!("logits.{kind}")), 1e-4);
        }
    }
    Ok(())
}

#[test]
fn merged_checkpoints_of_fused_projections_have_the_logits_of_model_and_adapter() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("logits.safetensors");
    // With biases and keys for each head, without and for groups of heads, with a fused MLP, and beside experts.
    for family in ["bloom-3-heads", "falcon-40b", "phi3", "mixtral"] {
        let (goldens, expected) = (Goldens::load(family)?, recorded(family)?);
        let model = adapted(&goldens)?;
        let checkpoint = Checkpoint::open(goldens.model())?;
        for kind in ["lora", "ia3"] {
            let [adapter, merged] =
                ["adapter", "merged"].map(|what| directory.path().join(format!("{family}-{kind}-{what}")));
            save(&tables(&expected, checkpoint.config(), kind)?, &model, &adapter)?;
            let merge = Tune::bare(&["export"])?.path("--model", &goldens.model()).path("--adapter", &adapter);
            merge.path("--merge-lora", &merged).events()?;
            let swarm = ProcessSwarm::start(&merged, &["0..4"])?;
            let got = logits(swarm.tune("logits")?, &out)?;
            // Merged weights are rounded to what the checkpoint's files have.
            let tolerance = match std::fs::read_to_string(goldens.model().join("config.json"))? {
                config if config.contains("\"bfloat16\"") => 4e-2,
                config if config.contains("\"float16\"") => 5e-3,
                _ => 1e-4,
            };
            assert_close(&format!("{family}, {kind}"), &got, &expected.tensor(&format!("logits.{kind}")), tolerance);
        }
    }
    Ok(())
}

#[test]
fn a_run_goes_on_from_what_was_saved_of_fused_projections() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (goldens, expected) = (Goldens::load("bloom")?, recorded("bloom")?);
    let (model, checkpoint) = (adapted(&goldens)?, Checkpoint::open(goldens.model())?);
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let options = goldens.value("optimiser");
    let text = |name: &str| options[name].to_string().trim_matches('"').to_owned();
    for kind in ["lora", "ia3"] {
        let start = directory.path().join(format!("start-{kind}"));
        save(&tables(&expected, checkpoint.config(), kind)?, &model, &start)?;
        let run = swarm.tune("train")?.args(&["--mode", kind, "--task", "causal-lm", "--no-shuffle"]);
        let run = run
            .args(&["--max-length", "64", "--steps", &text("steps"), "--lr", &text("lr")])
            .args(&["--batch-size", &text("batch_size"), "--weight-decay", &text("weight_decay")])
            .args(&["--clip", &text("clip"), "--schedule", &text("schedule"), "--warmup", &text("warmup")])
            .path("--data", &Goldens::data("train-causal.jsonl"))
            .path("--init-from", &start)
            .path("--out", &directory.path().join(kind));
        let losses = run.losses()?;
        assert_curves_close(kind, &losses, &expected.numbers(&format!("curve.{kind}.causal-lm")), 1e-3);
        let loaded = Adapter::load(&directory.path().join(kind), &model)?.tables;
        assert_eq!(loaded.shape().weights, tables(&expected, checkpoint.config(), kind)?.shape().weights);
    }
    Ok(())
}

#[test]
fn targets_are_named_as_the_family_does_and_others_refused_with_what_there_is() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let validate = |family: &str, flags: &[&str]| {
        let goldens = Goldens::load(family)?;
        let run = Tune::bare(&["train"])?.args(&["--task", "causal-lm", "--validate"]).args(flags);
        let run = run.path("--model", &goldens.model()).path("--data", &Goldens::data("train-causal.jsonl"));
        run.path("--out", &directory.path().join("out")).output()
    };
    for (family, targets) in
        [("bloom", "query_key_value,dense_h_to_4h"), ("phi3", "qkv_proj,gate_up_proj"), ("mixtral", "q_proj,o_proj")]
    {
        let output = validate(family, &["--mode", "lora", "--targets", targets])?;
        assert!(output.status.success(), "{family}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (family, mode, target, has) in [
        ("bloom", "lora", "gate_proj", "dense_h_to_4h (up_proj)"),
        ("gpt-neox", "ia3", "query_key_value", "write k_proj,v_proj"),
        ("mixtral", "lora", "w1", "experts cannot be adapted"),
    ] {
        let output = validate(family, &["--mode", mode, "--targets", target])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("--targets") && said.contains(has), "{family}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_refuse_changes_of_matrices_that_they_do_not_have_by_name() -> anyhow::Result<()> {
    for (family, missing) in [("bloom", Module::Gate), ("mixtral", Module::Down)] {
        let goldens = Goldens::load(family)?;
        let swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
        let mut stranger = Stranger::greeted(&swarm).await?;
        let (d, widths) = (swarm.hidden, swarm.local.config().block_widths());
        let change = |module: Module| {
            let weights = WeightChange::LowRank { rank: 2, modules: [module].into_iter().collect() };
            let layout = PassLayout { weights, ..layout((1, 2), &[1]) };
            let count = layout.block_values(widths);
            let table = Tensor::from_f32(WireDtype::F32, &[1, count], &vec![0.1; count]);
            (forward(layout), [rows(1, d, 0.1), table])
        };
        let (request, tensors) = change(missing);
        let refusal = stranger.refusal(&request, &tensors).await?.to_string();
        assert!(refusal.contains(missing.name()) && refusal.contains("q_proj"), "{family}: {refusal}");
        let (request, tensors) = change(Module::Output);
        let good = stranger.ask(&request, &tensors).await?;
        assert!(matches!(good, Response::Forward(_)), "{family}: {good:?}");
    }
    Ok(())
}
