//! `petals-tune logits` against transformers and PEFT.

use petals_e2e::{Goldens, ProcessSwarm, Tune, assert_close};
use safetensors::SafeTensors;

pub(crate) fn logits(tune: Tune, out: &std::path::Path) -> anyhow::Result<Vec<f32>> {
    let input = Goldens::data("input_ids.json");
    tune.path("--input-ids", &input).path("--out", out).events()?;
    let bytes = std::fs::read(out)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let tensor = file.tensor("logits")?;
    assert_eq!(tensor.shape()[..2], [3, 9]);
    Ok(tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

#[test]
fn logits_equal_transformers_with_and_without_adapters_over_one_two_and_three_servers() -> anyhow::Result<()> {
    let splits: [&[&str]; 3] = [&["0..4"], &["0..2", "2..4"], &["0..1", "1..3", "3..4"]];
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("logits.safetensors");
    for (number, family) in Goldens::families()?.iter().enumerate() {
        let goldens = Goldens::load(family)?;
        // Every split is tried with two families; the gradients' test has all pairs.
        let swarm = ProcessSwarm::start(&goldens.model(), splits[number % splits.len()])?;
        let bare = logits(swarm.tune("logits")?, &out)?;
        assert_close(family, &bare, &goldens.tensor("logits"), 1e-4);
        for mode in ["ptune", "replace", "add"] {
            let adapter = goldens.path(&format!("init-{mode}"));
            let tuned = logits(swarm.tune("logits")?.path("--adapter", &adapter), &out)?;
            assert_close(&format!("{family}, {mode}"), &tuned, &goldens.tensor(&format!("logits.{mode}")), 1e-4);
        }
        let adapter = goldens.path("peft-prompt-tuning");
        if adapter.exists() {
            // PEFT's own logits with it are those of the tables that it was made from, which the oracle checks.
            let peft = logits(swarm.tune("logits")?.path("--adapter", &adapter), &out)?;
            assert_close(&format!("{family}, PEFT's adapter"), &peft, &goldens.tensor("logits.ptune"), 1e-4);
        }
    }
    Ok(())
}
