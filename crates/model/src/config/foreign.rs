//! Configurations that are more than a language model's: the text part of wrappers.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{ConfigError, Fields, families};

/// Language models inside of wrappers that are a family by another name: without images all three positions of a token of theirs are equal.
const TEXT_PARTS: [(&str, &str); 6] = [
    ("qwen2_vl", "qwen2"),
    ("qwen2_vl_text", "qwen2"),
    ("qwen2_5_vl", "qwen2"),
    ("qwen2_5_vl_text", "qwen2"),
    ("qwen3_vl_text", "qwen3"),
    ("qwen3_vl_moe_text", "qwen3_moe"),
];

/// Keys of a wrapper that hold for the language model in it, unless it has its own.
const INHERITED: [&str; 3] = ["tie_word_embeddings", "bos_token_id", "eos_token_id"];

/// The configuration of the language model in a wrapper of text and images, or the configuration as it is.
pub(super) fn text_part(map: &Map<String, Value>) -> Result<Cow<'_, Map<String, Value>>, ConfigError> {
    let fields = Fields::new(map);
    let model_type = fields.text("model_type")?.ok_or_else(|| ConfigError::Missing("model_type".to_owned()))?;
    let (mut part, mut name) = (Cow::Borrowed(map), model_type);
    for key in ["text_config", "llm_config", "language_config"] {
        let Some(Value::Object(inner)) = map.get(key) else { continue };
        let Some(inner_type) = inner.get("model_type").and_then(Value::as_str) else {
            return Err(wrapper(model_type, key, "a language model"));
        };
        let mut inner = inner.clone();
        for key in INHERITED {
            if let Some(value) = map.get(key).filter(|_| !inner.contains_key(key)) {
                inner.insert(key.to_owned(), value.clone());
            }
        }
        if !is_text(inner_type) {
            return Err(wrapper(model_type, key, &format!("a `{}` language model", inner_type.escape_default())));
        }
        (part, name) = (Cow::Owned(inner), inner_type);
        break;
    }
    if let Some((_, family)) = TEXT_PARTS.iter().find(|(part, _)| *part == name) {
        part.to_mut().insert("model_type".to_owned(), Value::from(*family));
    }
    Ok(part)
}

fn is_text(model_type: &str) -> bool {
    TEXT_PARTS.iter().any(|(part, _)| *part == model_type) || families::of(model_type).is_ok()
}

fn wrapper(model_type: &str, key: &str, inner: &str) -> ConfigError {
    ConfigError::Unsupported {
        key: "model_type".to_owned(),
        got: format!("`{}`, a wrapper around {inner} in `{key}`,", model_type.escape_default()),
        supported: families::supported(),
        remedy: "use a model whose language model is of one of these families".to_owned(),
    }
}
