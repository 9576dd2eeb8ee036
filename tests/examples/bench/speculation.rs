//! Generation over slow links with and without foreseen tokens, beside what one token a round trip allows.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use petals_e2e::{LinkConfig, WideAreaSwarm};
use serde_json::Value;

use crate::{Model, number};

/// A text that says things twice, as quotes, lists and edited texts do.
const REPEATING: &str = "Q: Where is the barrel? A: The barrel is in the yard. Q: Is the shark grey? A: Yes, the shark is grey. \
                         Q: Where is the barrel? A: The barrel is in the yard. Q: Is the shark grey? A: Yes, the shark is grey. \
                         Q: Where is the barrel? A:";
const SHORT: &str = "Q: Where is the barrel? A:";
const TOKENS: &str = "96";

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let [directory, round_trip, mbit] = match options {
        [] => ["demo/model", "100", "100"],
        &[directory] => [directory, "100", "100"],
        &[directory, round_trip] => [directory, round_trip, "100"],
        &[directory, round_trip, mbit] => [directory, round_trip, mbit],
        _ => anyhow::bail!("speculation [DIR [ROUND_TRIP_MS [MBIT]]]"),
    };
    let endless = endless(Path::new(directory))?;
    let model = Model { directory: endless.path().to_owned(), _random: Some(endless) };
    let round_trip: f64 = round_trip.parse().context("the round trip is in milliseconds")?;
    let bits_per_s = 1e6 * mbit.parse::<f64>().context("the rate is in Mbit/s")?;
    println!("## {TOKENS} tokens of {directory}, {round_trip} ms round trip between any two hosts, {mbit} Mbit/s\n");
    println!(
        "| servers | prompt | foreseen by | steps | right of foreseen | first token s | tokens/s | bound without | of it |"
    );
    println!("|---:|---|---|---:|---:|---:|---:|---:|---:|");
    for servers in [1, 2] {
        let access = LinkConfig::between_hosts(Duration::from_secs_f64(round_trip / 1e3), bits_per_s);
        let spans = model.spans(servers)?;
        let spans: Vec<&str> = spans.iter().map(String::as_str).collect();
        let swarm = WideAreaSwarm::start(model.directory(), &spans, access, &[])?;
        // A step goes out to the first server, from server to server, and back from the last one.
        let bound = 1e3 / (round_trip / 2.0 * (servers + 1) as f64);
        for (name, prompt) in [("repeats", REPEATING), ("one question", SHORT)] {
            let mut plain = None;
            for way in ["nobody", "lookup", "the model itself"] {
                let event = generate(&swarm, model.directory(), prompt, way)?;
                let tokens = event["token_ids"].clone();
                let plain = plain.get_or_insert_with(|| tokens.clone());
                anyhow::ensure!(tokens == *plain, "{way} changed the text");
                let rate = number(&event, "tokens_per_s")?;
                println!(
                    "| {servers} | {name} | {way} | {} | {} of {} | {:.2} | {rate:.1} | {bound:.1} | {:.0} % |",
                    event["steps"],
                    event["accepted"],
                    event["drafted"],
                    number(&event, "time_to_first_token_s")?,
                    100.0 * rate / bound,
                );
            }
        }
    }
    Ok(())
}

/// A copy of a model that names no token which ends a text, so that all texts are of one length.
fn endless(directory: &Path) -> anyhow::Result<tempfile::TempDir> {
    let copy = tempfile::tempdir()?;
    for file in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let file = file?;
        let name = file.file_name();
        if name == "config.json" {
            let mut config: Value = serde_json::from_slice(&std::fs::read(file.path())?)?;
            config.as_object_mut().and_then(|config| config.remove("eos_token_id"));
            std::fs::write(copy.path().join(name), config.to_string())?;
        } else if name != "generation_config.json" && name != "tokenizer_config.json" {
            std::fs::copy(file.path(), copy.path().join(name))?;
        }
    }
    Ok(copy)
}

fn generate(swarm: &WideAreaSwarm, model: &Path, prompt: &str, way: &str) -> anyhow::Result<Value> {
    let tune = swarm.tune("generate", model)?.args(&["--prompt", prompt, "--max-new-tokens", TOKENS]);
    let tune = match way {
        "nobody" => tune.args(&["--no-lookup"]),
        "lookup" => tune,
        _ => tune.args(&["--no-lookup"]).path("--draft-model", model),
    };
    tune.events()?.into_iter().find(|event| event["event"] == "generated").context("no text")
}
