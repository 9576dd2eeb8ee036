//! What one user of `petals-tune serve` can learn of another one's texts by what is kept of them.

use anyhow::Context;
use petals_e2e::{ApiServer, Goldens, ProcessSwarm, http};
use serde_json::json;

/// Tokens of a completion's prompt that were there before, asked for with a key.
fn cached(api: &ApiServer, key: &str, prompt: &str) -> anyhow::Result<u64> {
    let bearer = format!("Authorization: Bearer {key}");
    let request = json!({"model": "model", "prompt": prompt, "max_tokens": 2, "temperature": 0}).to_string();
    let answer = http(api.address, &["POST /v1/completions", "Content-Type: application/json", &bearer], &request)?;
    anyhow::ensure!(answer.status == 200, "status {}: {}", answer.status, answer.body);
    answer.json()?["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().context("no count")
}

#[test]
fn a_key_sees_nothing_of_what_another_one_asked_unless_all_share() -> anyhow::Result<()> {
    let goldens = Goldens::load("llama-gqa")?;
    let directory = tempfile::tempdir()?;
    let keys = directory.path().join("api.keys");
    std::fs::write(&keys, "victim\nattacker\n")?;
    let swarm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let serve = |more: &[&str]| ApiServer::start(swarm.tune("serve")?.path("--api-key-file", &keys).args(more));
    let secret = "the diagnosis of the patient is the same as it was in the spring";
    let apart = serve(&[])?;
    assert_eq!(cached(&apart, "victim", secret)?, 0, "it is new");
    // The attack: whoever guesses right is told so.
    assert_eq!(cached(&apart, "attacker", secret)?, 0, "a guess must not show");
    assert!(cached(&apart, "victim", secret)? > 0, "what is one's own is used again");
    let refused = http(apart.address, &["GET /v1/models", "Authorization: Bearer nobody"], "")?;
    assert_eq!(refused.status, 401);
    apart.stop()?;
    let together = serve(&["--share-prefixes"])?;
    assert_eq!(cached(&together, "victim", secret)?, 0, "it is new");
    assert!(cached(&together, "attacker", secret)? > 0, "the attack works where all share");
    together.stop()
}
