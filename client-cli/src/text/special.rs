//! Which tokens end a text, as the model's configuration files say.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::added::role;
use super::files::TokenizerFiles;

/// End-of-sequence tokens of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct EndTokens {
    /// The one to append to training texts.
    pub(super) append: Option<u32>,
    /// Those that end generation, ascending. An instruction-tuned model has several.
    pub(super) stop: Vec<u32>,
}

impl EndTokens {
    /// The token that the tokenizer's files name, with those of `config.json` and `generation_config.json`. All are optional.
    pub(super) fn read(model: &Path, files: &TokenizerFiles, tokenizer: &Tokenizer) -> Self {
        let by_name = role(files, "eos_token").and_then(|name| tokenizer.token_to_id(name));
        // Whether the configuration is sound is a question for whoever loads the model.
        let config = fs::read_to_string(model.join("config.json")).ok();
        let config: Option<Value> = config.and_then(|text| serde_json::from_str(&text).ok());
        let configured = token_ids(config.as_ref().and_then(|config| config.get("eos_token_id")));
        let generating = token_ids(files.generation.get("eos_token_id"));
        let append = by_name.or(configured.first().copied()).or(generating.first().copied());
        let mut stop: Vec<u32> = by_name.into_iter().chain(configured).chain(generating).collect();
        stop.sort_unstable();
        stop.dedup();
        Self { append, stop }
    }
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
