//! Configurations that are more than a language model's, or of weights that are not plain: the text part of wrappers, and quantised weights,
//! which are refused before anything else of theirs could look wrong.

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

/// Methods that are read, each in one family.
const READ: [(&str, &str); 1] = [("mxfp4", "gpt_oss")];

/// Refuses weights that are not plain numbers, by the name of the method that made them.
pub(super) fn not_quantised(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let model_type = fields.text("model_type")?;
    // The second one is what early versions of compressed-tensors wrote.
    for key in ["quantization_config", "compression_config"] {
        let Some(quantised) = fields.object(key)? else { continue };
        let mut method = match quantised.text("quant_method")? {
            Some(method) => format!("`{}`", method.escape_default()),
            None if quantised.flag("load_in_4bit")? || quantised.flag("load_in_8bit")? => "`bitsandbytes`".to_owned(),
            None => "a method without a name".to_owned(),
        };
        if let Ok(Some(bits)) = quantised.number("bits", 1.0, 32.0) {
            method.push_str(&format!(" with {bits} bits"));
        }
        let method_of = |(own, family): &(&str, &str)| method == format!("`{own}`") && model_type == Some(*family);
        if READ.iter().any(method_of) {
            continue;
        }
        return Err(ConfigError::Unsupported {
            key: format!("{key}.quant_method"),
            got: method,
            supported: "weights that are not quantised are, in F32, BF16 or F16".to_owned(),
            remedy: "use the model that this one was made from, which its model card names".to_owned(),
        });
    }
    Ok(())
}
