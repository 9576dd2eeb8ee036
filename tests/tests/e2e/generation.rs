//! `petals-tune generate` against transformers.

use anyhow::Context;
use petals_e2e::{Goldens, ProcessSwarm};
use serde_json::Value;

#[test]
fn greedy_generation_equals_transformers_for_32_tokens() -> anyhow::Result<()> {
    for family in Goldens::families()? {
        let goldens = Goldens::load(&family)?;
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

#[test]
fn a_stop_string_ends_the_text_before_it() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let run = |more: &[&str]| -> anyhow::Result<Value> {
        let prompt = goldens.value("prompt_text").as_str().unwrap_or_default();
        let events =
            swarm.tune("generate")?.args(&["--prompt", prompt, "--max-new-tokens", "40"]).args(more).events()?;
        events.last().cloned().context("no events")
    };
    let whole = run(&[])?;
    let text = whole["text"].as_str().unwrap_or_default();
    assert_eq!((&whole["finish"], whole["new_tokens"].as_u64()), (&Value::from("length"), Some(40)));
    // Across borders of tokens: most tokens are shorter than three characters.
    let (at, _) = text.char_indices().nth(text.chars().count() / 2).context("an empty text")?;
    let stop: String = text[at..].chars().take(3).collect();
    let cut = run(&["--stop", "nowhere to be found", "--stop", &stop])?;
    assert_eq!(cut["text"].as_str(), text.find(&stop).map(|end| &text[..end]));
    assert_eq!(cut["finish"], "stop_string");
    assert!(cut["token_ids"].as_array().map(Vec::len) < Some(40));
    let hops = cut["hops"].as_array().context("no hops")?;
    assert_eq!((hops.len(), &hops[0]["steps"]), (1, &cut["steps"]));
    Ok(())
}

#[test]
fn beams_samples_and_draft_models_are_there_on_the_command_line() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let run = |more: &[&str]| -> anyhow::Result<Vec<Value>> {
        let prompt = goldens.value("prompt_text").as_str().unwrap_or_default();
        let tune = swarm.tune("generate")?.args(&["--prompt", prompt, "--max-new-tokens", "64"]).args(more);
        Ok(tune.events()?.into_iter().filter(|event| event["event"] == "generated").collect())
    };
    let searches: Value = serde_json::from_slice(&std::fs::read(Goldens::data("decoding.json"))?)?;
    let golden = |name: &str| {
        let all = searches["llama-gqa"]["searches"].as_array().into_iter().flatten();
        all.clone()
            .find(|search| search["name"] == name && search["mode"] == "bare")
            .map(|search| search["tokens"].clone())
    };
    assert_eq!(Some(&run(&["--beams", "3"])?[0]["token_ids"]), golden("beams-3").as_ref());
    // The best text up to a stop string in it is not necessarily the best of those that end with one, but it ends there.
    let whole = run(&["--beams", "3"])?[0]["text"].as_str().unwrap_or_default().to_owned();
    let stop: String = whole.chars().skip(whole.chars().count() / 2).take(2).collect();
    let stopped = &run(&["--beams", "3", "--early-stopping", "yes", "--stop", &stop])?[0];
    let text = stopped["text"].as_str().unwrap_or_default();
    assert_eq!((&stopped["finish"], text.contains(&stop)), (&Value::from("stop_string"), false), "{stopped}");
    assert!(stopped["steps"].as_u64() < Some(64), "the search went on behind the stop string: {stopped}");
    let model = goldens.model();
    let drafted = run(&["--repetition-penalty", "1.3", "--draft-model", model.to_str().unwrap_or_default()])?;
    assert_eq!(Some(&drafted[0]["token_ids"]), golden("greedy-penalty").as_ref());
    assert!(drafted[0]["accepted"].as_u64() > Some(0), "{}", drafted[0]);
    let several = run(&["--temperature", "1", "--min-p", "0.02", "--num-return", "2", "--seed", "7"])?;
    let second = run(&["--temperature", "1", "--min-p", "0.02", "--seed", "8", "--no-lookup"])?;
    assert_eq!((several.len(), &several[1]["number"]), (2, &Value::from(2)));
    assert_eq!(several[1]["token_ids"], second[0]["token_ids"]);
    assert_ne!(several[0]["token_ids"], several[1]["token_ids"]);
    Ok(())
}
