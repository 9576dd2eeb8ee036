//! `petals-tune chat` with its input from a pipe.

use anyhow::Context;
use petals_e2e::{Goldens, ProcessSwarm};
use serde_json::Value;

use crate::serve::template;

#[test]
fn a_conversation_over_a_pipe_is_that_of_generate() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let template = template(directory.path())?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..2", "2..4"])?;
    let deep = goldens.path("init-replace");
    let adapter = format!("deep={}", deep.display());
    let chat = || {
        let chat = swarm.tune("chat")?.args(&["--adapter", &adapter, "--temperature", "0", "--max-new-tokens", "12"]);
        anyhow::Ok(chat.path("--chat-template", &template))
    };
    let input = "the cat\n\n/adapter none\n/reset\nthe cat\nagain\n/system be brief\n/nothing\n/adapter other\n/quit\nnot read\n";
    let output = chat()?.args(&["--json"]).output_with(input)?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{stderr}");
    let events = stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let answers: Vec<&Value> = events.iter().filter(|event| event["event"] == "answer").collect();
    let [first, second, third] = answers.as_slice() else { anyhow::bail!("{stdout}") };

    let generated = |prompt: &str, adapted: bool| {
        let mut tune = swarm.tune("generate")?.args(&["--prompt", prompt, "--max-new-tokens", "12"]);
        if adapted {
            tune = tune.path("--adapter", &deep);
        }
        let events = tune.events()?;
        let generated = events.iter().find(|event| event["event"] == "generated").map(|event| event["text"].clone());
        generated.context("no text")
    };
    assert_eq!(first["text"], generated("[user] the cat\n[assistant]", true)?);
    assert_eq!((first["adapter"].as_str(), first["finish"].as_str()), (Some("deep"), Some("length")));
    let plain = generated("[user] the cat\n[assistant]", false)?;
    assert_eq!(second["text"], plain);
    assert_eq!(second["adapter"], Value::Null);
    // The next turn has the whole conversation in front of it, most of which the servers have.
    let text = plain.as_str().context("no text")?;
    let asked = format!("[user] the cat\n[assistant] {text}\n[user] again\n[assistant]");
    assert_eq!(third["text"], generated(&asked, false)?);
    let [all, reused] = ["prompt_tokens", "reused_tokens"].map(|name| third[name].as_u64().unwrap_or_default());
    assert!(reused > 5 && reused < all, "{reused} of {all}");
    let notices: Vec<&str> = events.iter().filter_map(|event| event["message"].as_str()).collect();
    assert!(notices.iter().any(|notice| notice.contains("no command /nothing")), "{notices:?}");
    assert!(notices.iter().any(|notice| notice.contains("no adapter other")), "{notices:?}");

    // For people: the answer and nothing else; the end of the input is the end.
    let output = chat()?.output_with("the cat")?;
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout)?, format!("{}\n", first["text"].as_str().context("no text")?));
    Ok(())
}

#[test]
fn a_model_without_a_template_says_what_to_do() -> anyhow::Result<()> {
    let goldens = Goldens::load("qwen3")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &[])?;
    let output = swarm.tune("chat")?.output_with("hello\n")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("--chat-template FILE"), "{stderr}");
    Ok(())
}
