//! Which tokens end a text, as the model's configuration files say.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

/// End-of-sequence tokens of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct EndTokens {
    /// The one to append to training texts.
    pub(super) append: Option<u32>,
    /// Those that end generation, ascending. An instruction-tuned model has several.
    pub(super) stop: Vec<u32>,
}

impl EndTokens {
    /// Reads `tokenizer_config.json`, `config.json` and `generation_config.json`. All are optional, and what is not there
    /// or not understood names no token.
    pub(super) fn read(model: &Path, tokenizer: &Tokenizer) -> Self {
        let named = json(model, "tokenizer_config.json").and_then(|config| token_name(config.get("eos_token")?));
        let by_name = named.and_then(|name| tokenizer.token_to_id(&name));
        let ids = |file| json(model, file).map(|config| token_ids(config.get("eos_token_id"))).unwrap_or_default();
        let (configured, generating) = (ids("config.json"), ids("generation_config.json"));
        let append = by_name.or(configured.first().copied()).or(generating.first().copied());
        let mut stop: Vec<u32> = by_name.into_iter().chain(configured).chain(generating).collect();
        stop.sort_unstable();
        stop.dedup();
        Self { append, stop }
    }
}

fn json(model: &Path, file: &str) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(model.join(file)).ok()?).ok()
}

fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
