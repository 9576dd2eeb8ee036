//! What a narrower dtype on the wire does to logits, losses and gradients.

use petals_client::{PassInput, SequenceConfig, TunerConfig, WireDtype};
use petals_e2e::{FAMILIES, Goldens, LocalSwarm, largest_difference};
use petals_node::ExecutorConfig;

use crate::gradients::{check, tolerances};

const NARROW: [WireDtype; 3] = [WireDtype::F16, WireDtype::Bf16, WireDtype::Int8];
/// Each hidden state is rounded three times on its way, and each gradient twice.
const SPANS: [&str; 3] = ["0..1", "1..3", "3..4"];

#[tokio::test(flavor = "multi_thread")]
async fn losses_and_gradients_stay_within_the_tolerance_of_their_dtype() -> anyhow::Result<()> {
    for wire_dtype in NARROW {
        for family in FAMILIES {
            let config = SequenceConfig { wire_dtype, ..SequenceConfig::default() };
            check(family, &SPANS, ExecutorConfig::default(), config, TunerConfig::default()).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logits_stay_within_the_tolerance_of_their_dtype() -> anyhow::Result<()> {
    for family in FAMILIES {
        let goldens = Goldens::load(family)?;
        let swarm = LocalSwarm::start(&goldens.model(), &SPANS, ExecutorConfig::default()).await?;
        let rows = Goldens::input_ids()?;
        let lengths: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
        let text = swarm.local.embed(&rows.concat())?;
        for wire_dtype in NARROW.into_iter().chain([WireDtype::F32]) {
            let sequence = swarm.sequence(SequenceConfig { wire_dtype, ..SequenceConfig::default() });
            let (lengths, text) = (lengths.clone(), text.clone());
            let input = PassInput { lengths, text, read_rows: None, tables: None };
            let (output, _) = sequence.forward(input, false).await?;
            let error = largest_difference(&swarm.local.lm_logits(&output)?, &goldens.tensor("logits"));
            let allowed = tolerances(wire_dtype).logits;
            assert!(error <= allowed, "{family}, {wire_dtype}: off by {error:e} of {allowed:e}");
            // What is rounded on the wire cannot be as close as what is not.
            assert!(wire_dtype == WireDtype::F32 || error > 1e-5, "{family}: {wire_dtype} seems not to be used");
        }
    }
    Ok(())
}
