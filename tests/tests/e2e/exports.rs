//! Adapters turned into what other programs run, and texts turned into prefixes.

use std::fs;
use std::sync::Arc;

use petals_client::{DeepInit, InitRule, PromptTables, RemoteModel, SequenceConfig, TableInit, TableShape};
use petals_e2e::{Goldens, LocalSwarm, ProcessSwarm, assert_close};
use petals_node::ExecutorConfig;
use petals_protocol::{Injection, PassLayout, Refusal, Request, StashId, Tensor, WireDtype};
use serde_json::Value;

use crate::hostile::{Stranger, forward_request, layout, rows};
use crate::logits::logits;

#[test]
fn prompts_exported_as_keys_and_values_have_torchs_logits_though_a_server_is_killed() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("logits.safetensors");
    let splits: [(&str, &[&str]); 3] =
        [("llama-gqa", &["0..4"]), ("qwen3", &["0..2", "2..4"]), ("mistral", &["0..1", "1..3", "3..4", "1..4"])];
    for (family, spans) in splits {
        let goldens = Goldens::load(family)?;
        let mut swarm = ProcessSwarm::start(&goldens.model(), spans)?;
        if spans.len() == 4 {
            // Its record is still there, so that it is asked first or second.
            swarm.servers[1].kill()?;
        }
        for mode in ["ptune", "replace", "add"] {
            let (given, exported) =
                (goldens.path(&format!("init-{mode}")), directory.path().join(format!("{family}-{mode}")));
            let export = swarm.tune("export")?.path("--adapter", &given).args(&["--to", "prefix", "--verify", "0.5"]);
            let events = export.path("--out", &exported).events()?;
            assert!(events.iter().any(|event| event["event"] == "exported" && event["rows"] == 5), "{events:?}");
            let config: Value = serde_json::from_str(&fs::read_to_string(exported.join("adapter_config.json"))?)?;
            assert_eq!(config["peft_type"], "PREFIX_TUNING");
            let got = logits(swarm.tune("logits")?.path("--adapter", &exported), &out)?;
            assert_close(&format!("{family}, {mode}"), &got, &goldens.tensor(&format!("logits.{mode}")), 1e-4);
        }
    }
    Ok(())
}

#[test]
fn a_merged_checkpoint_has_the_logits_of_model_and_adapter() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("logits.safetensors");
    // The second one has biases, which vectors of keys and values scale too.
    for family in ["llama-gqa", "qwen2"] {
        let goldens = Goldens::load(family)?;
        let expected = Goldens::load(&format!("{family}/adapters"))?;
        for kind in ["lora", "ia3"] {
            let merged = directory.path().join(format!("{family}-{kind}"));
            let model = goldens.model();
            let merge = |into: &std::path::Path| {
                let tune = petals_e2e::Tune::bare(&["export"])?.path("--model", &model);
                anyhow::Ok(
                    tune.path("--adapter", &goldens.path(&format!("adapters/peft-{kind}"))).path("--merge-lora", into),
                )
            };
            merge(&merged)?.events()?;
            let swarm = ProcessSwarm::start(&merged, &["0..2", "2..4"])?;
            let got = logits(swarm.tune("logits")?, &out)?;
            assert_close(&format!("{family}, {kind}"), &got, &expected.tensor(&format!("logits.{kind}")), 1e-4);
            let again = merge(&merged)?.output()?;
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(!again.status.success() && said.contains("not empty"), "{said}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_text_is_as_good_as_the_text_in_front() -> anyhow::Result<()> {
    for family in ["llama3-rope", "qwen2"] {
        let goldens = Goldens::load(family)?;
        let swarm = LocalSwarm::start(&goldens.model(), &["0..1", "1..4"], ExecutorConfig::default()).await?;
        let model = RemoteModel::new(Arc::new(swarm.sequence(SequenceConfig::default())), swarm.local.clone());
        let text = Goldens::input_ids()?.concat();
        let vocabulary = swarm.local.config().vocab_size;
        let whole = model.logits(std::slice::from_ref(&text)).await?;
        let prefix = model.prefix_of_text(&text[..17]).await?;
        assert_eq!((prefix.shape().injection, prefix.shape().prefix_len), (Injection::KeysValues, 17));
        let behind = model.clone().with_tables(Some(prefix.into())).logits(&[text[17..].to_vec()]).await?;
        assert_close(family, &behind, &whole[17 * vocabulary..], 1e-4);

        // The states of a prompt in front of every block say what the prompt says.
        let shape = TableShape {
            injection: Injection::Replace,
            weights: Default::default(),
            scale: 1.0,
            blocks: 4,
            prefix_len: 17,
            widths: swarm.local.config().block_widths(),
            labels: None,
        };
        let rule = InitRule::Text(text[..17].to_vec());
        let init = TableInit { rule, deep: Some(DeepInit::States), std: 0.02, vocab_size: vocabulary as u32, seed: 1 };
        let tables = PromptTables::initialise(shape, &init, |ids| swarm.local.embed(ids))?;
        let tables = model.with_prompt_states(tables).await?;
        let behind = model.with_tables(Some(tables.into())).logits(&[text[17..].to_vec()]).await?;
        assert_close(&format!("{family}, states"), &behind, &whole[17 * vocabulary..], 1e-4);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_of_no_prefix_are_refused_and_the_stream_goes_on() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = LocalSwarm::start(&goldens.model(), &["0..4"], ExecutorConfig::default()).await?;
    let mut stranger = Stranger::greeted(&swarm).await?;
    let d = swarm.hidden;
    let plain = layout((1, 3), &[2]);
    let prompted = PassLayout { prefix_len: 2, ..plain.clone() };
    let mut stashed = forward_request(prompted.clone());
    stashed.stash = Some(StashId(1));
    for wrong in [forward_request(plain), stashed] {
        let refusal = stranger.refusal(&Request::KeysValues(wrong), &[rows(2, d, 0.1), rows(2, d, 0.1)]).await?;
        assert!(matches!(refusal, Refusal::BadRequest { .. }), "{refusal}");
    }
    let request = Request::KeysValues(forward_request(prompted));
    let refusal = stranger.refusal(&request, &[rows(2, d, 0.1)]).await?;
    assert!(matches!(refusal, Refusal::BadShape { .. }), "{refusal}");
    let nan = Tensor::from_f32(WireDtype::F32, &[2, d], &vec![f32::NAN; 2 * d]);
    let refusal = stranger.refusal(&request, &[rows(2, d, 0.1), nan]).await?;
    assert!(matches!(refusal, Refusal::NotFinite { .. }), "{refusal}");
    let tensors = stranger.answer(&request, &[rows(2, d, 0.1), rows(2, d, 0.1)]).await?.tensors;
    let keys = swarm.local.config().block_widths().key;
    let shapes: Vec<&[u32]> = tensors.iter().map(|tensor| tensor.meta().shape.as_slice()).collect();
    let (d, keys) = (d as u32, keys as u32);
    assert_eq!(shapes, [[2, d].as_slice(), &[2, d], &[2, 2 * 2 * keys]]);
    Ok(())
}
