//! `petals-tune generate` against transformers.

use petals_e2e::{FAMILIES, Goldens, ProcessSwarm};

#[test]
fn greedy_generation_equals_transformers_for_32_tokens() -> anyhow::Result<()> {
    for family in FAMILIES {
        let goldens = Goldens::load(family)?;
        let swarm = ProcessSwarm::start(&goldens.model(), &["0..1", "1..3", "3..4"])?;
        let prompt = goldens.value("prompt_text").as_str().unwrap_or_default();
        for mode in ["bare", "ptune", "replace", "add"] {
            let mut tune = swarm.tune("generate")?.args(&["--prompt", prompt, "--max-new-tokens", "32"]);
            if mode != "bare" {
                tune = tune.path("--adapter", &goldens.path(&format!("init-{mode}")));
            }
            let events = tune.events()?;
            let ids = &events.last().unwrap_or(&serde_json::Value::Null)["token_ids"];
            assert_eq!(ids, goldens.value(&format!("generate.{mode}")), "{family}, {mode}");
        }
    }
    Ok(())
}

#[test]
fn equal_seeds_sample_equally_and_others_differ() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen2")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let sample = |seed: &str| -> anyhow::Result<String> {
        let arguments = ["--prompt", "the", "--max-new-tokens", "12", "--temperature", "1.0", "--top-k", "50"];
        let events = swarm.tune("generate")?.args(&arguments).args(&["--top-p", "0.95", "--seed", seed]).events()?;
        Ok(events.last().map(|event| event["token_ids"].to_string()).unwrap_or_default())
    };
    assert_eq!(sample("1")?, sample("1")?);
    assert_ne!(sample("1")?, sample("2")?);
    Ok(())
}
