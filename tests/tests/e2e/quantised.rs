//! Training and sessions through servers whose weights are of eight and four bits.

use std::sync::Arc;

use petals_client::{AdamW, PromptTuner, SequenceConfig, Table, TextSession, TunerConfig};
use petals_e2e::{Goldens, LocalSwarm};
use petals_model::{Device, Division, Dtype, KvDtype, Place};
use petals_node::ServerConfig;

use crate::gradients::{examples, tables};
use crate::sessions::model;

/// The norm of the difference in parts of the expected norm.
fn apart(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    difference / norm(&mut expected.iter().copied())
}

async fn swarm(goldens: &Goldens, spans: &[&str], dtype: Dtype, kv_dtype: KvDtype) -> anyhow::Result<LocalSwarm> {
    let place = Place { device: Device::cpu(), dtype, kv_dtype };
    let narrow = |config: ServerConfig| {
        let division = Division::whole(config.division.span(), place.clone());
        ServerConfig { division, ..config }
    };
    LocalSwarm::start_with(&goldens.model(), spans, narrow).await
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_and_gradients_differ_from_torchs_by_the_rounding_of_weights() -> anyhow::Result<()> {
    for (dtype, of_loss, of_gradients) in [(Dtype::Int8, 0.01, 0.25), (Dtype::Int4, 0.1, 0.9)] {
        for family in ["qwen3", "bloom", "mixtral", "gemma2"] {
            let goldens = Goldens::load(family)?;
            let mut alone = None;
            for spans in [&["0..4"][..], &["0..2", "2..4"]] {
                let swarm = swarm(&goldens, spans, dtype, KvDtype::F32).await?;
                let tables = tables(&goldens, &swarm, "add", "causal-lm")?;
                let optimizer = AdamW::new(tables.shape(), 0.0);
                let sequence = Arc::new(swarm.sequence(SequenceConfig::default()));
                let tuner = PromptTuner::new(sequence, swarm.local.clone(), tables, optimizer, TunerConfig::default());
                let (gradients, score) = tuner.gradients(&examples(&goldens, "causal-lm")?).await?;
                let expected = goldens.value("loss.add.causal-lm").as_f64().unwrap_or(f64::NAN);
                let loss = score.loss().unwrap_or(f64::NAN);
                assert!((loss - expected).abs() <= of_loss * expected, "{family} in {dtype}: {loss} for {expected}");
                let deep = gradients.table(Table::Deep).unwrap_or_default().to_vec();
                let off = apart(&deep, &goldens.tensor("grad.add.causal-lm.Q"));
                // In a mixture of random weights a row that chooses another expert has another gradient altogether; which do depends on the processor's kernels.
                assert!(family == "mixtral" || off <= of_gradients, "{family} in {dtype}: gradients are {off} apart");
                // However many servers: the same weights were rounded the same way.
                let first = alone.get_or_insert_with(|| deep.clone());
                assert!(apart(&deep, first) < 1e-4, "{family} in {dtype} over {spans:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_near_whole_forwards() -> anyhow::Result<()> {
    // A pass multiplies widened weights, a step rounds its rows as well.
    for (dtype, kv_dtype) in [(Dtype::Int8, KvDtype::F16), (Dtype::Int4, KvDtype::Int8), (Dtype::F32, KvDtype::Bf16)] {
        for family in ["qwen3", "gemma2", "falcon-7b"] {
            let goldens = Goldens::load(family)?;
            let swarm = swarm(&goldens, &["0..2", "2..4"], dtype, kv_dtype).await?;
            for mode in ["bare", "replace"] {
                let model = model(&goldens, &swarm, mode, SequenceConfig::default())?;
                let text: Vec<u32> = (0..30).map(|n| (n * n * 7 + n * 3) % 61).collect();
                let whole = model.logits(std::slice::from_ref(&text)).await?;
                let mut session = TextSession::new(model, 1, 40);
                let mut got = Vec::new();
                for part in [&text[..12], &text[12..13], &text[13..29], &text[29..]] {
                    got.extend(session.append_and_score(&[part.to_vec()]).await?);
                }
                let off = apart(&got, &whole);
                assert!(off < 0.1, "{family}, {mode}, {dtype} with {kv_dtype}: {off}");
            }
        }
    }
    Ok(())
}
