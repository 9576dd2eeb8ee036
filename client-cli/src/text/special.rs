//! Which tokens end a text, as the model's files say.

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
    /// Whether `generation_config.json` is there, so that nobody asks `config.json`.
    has_generation: bool,
}

impl EndTokens {
    /// The token that the tokenizer's files name, with those of `generation_config.json`. All are optional.
    pub(super) fn read(files: &TokenizerFiles, tokenizer: &Tokenizer) -> Self {
        let by_name = role(files, "eos_token").and_then(|name| tokenizer.token_to_id(name));
        let generating = token_ids(files.generation.get("eos_token_id"));
        let append = by_name.or(generating.first().copied());
        let stop = by_name.into_iter().chain(generating).collect();
        Self { append, stop, has_generation: files.generation.is_object() }.sorted()
    }

    /// With those of the model's configuration, which count, as in transformers, if there is no `generation_config.json`.
    pub(super) fn with_configured(mut self, configured: &[u32]) -> Self {
        if !self.has_generation {
            self.append = self.append.or(configured.first().copied());
            self.stop.extend(configured);
        }
        self.sorted()
    }

    fn sorted(mut self) -> Self {
        self.stop.sort_unstable();
        self.stop.dedup();
        self
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
