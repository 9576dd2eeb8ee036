//! What is put around a text of its own: `add_bos_token` and `add_eos_token`.

use serde_json::{Value, json};
use tokenizers::{PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use super::TextError;
use super::added::role;
use super::files::TokenizerFiles;

/// Tokenizers whose class in transformers makes the post-processor itself, whatever `tokenizer.json` has; without flags
/// they begin a text and do not end it.
const LLAMA_LIKE: [&str; 4] = ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"];

/// Sets the post-processor and the space in front as `tokenizer_config.json` asks for them. Without the flags that of
/// `tokenizer.json` stays.
///
/// # Errors
/// [`TextError::Unusable`] if a flag asks for what cannot be.
pub(super) fn apply(tokenizer: &mut Tokenizer, files: &TokenizerFiles) -> Result<(), TextError> {
    let class = files.config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let llama = LLAMA_LIKE.contains(&class.strip_suffix("Fast").unwrap_or(class));
    let flag = |name| files.config.get(name).and_then(Value::as_bool);
    if !llama && let Some(space) = flag("add_prefix_space") {
        prefix_space(tokenizer, space)?;
    }
    let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if !llama && bos.is_none() && eos.is_none() {
        return Ok(());
    }
    let token = |key, usual: &str, wanted: bool| {
        let name = role(files, key).or_else(|| files.config.get(key).is_none().then_some(usual).filter(|_| llama));
        let name = name.filter(|_| wanted)?;
        Some((name.to_owned(), tokenizer.token_to_id(name)?))
    };
    let (bos, eos) =
        (token("bos_token", "<s>", bos.unwrap_or(llama)), token("eos_token", "</s>", eos.unwrap_or(false)));
    let piece = |token: &Option<(String, u32)>, part: u32| {
        token.as_ref().map(|(name, _)| json!({ "SpecialToken": { "id": name, "type_id": part } }))
    };
    let around = |name: &str, part: u32| -> Vec<Value> {
        let text = json!({ "Sequence": { "id": name, "type_id": part } });
        piece(&bos, part).into_iter().chain([text]).chain(piece(&eos, part)).collect()
    };
    let special: serde_json::Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(name, id)| (name.clone(), json!({ "id": name, "ids": [id], "tokens": [name] })))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    let template = json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": special,
    });
    let processor: PostProcessorWrapper = serde_json::from_value(template).map_err(|error| unusable(&error))?;
    tokenizer.with_post_processor(Some(processor));
    Ok(())
}

/// Whether the first word is written as others are, with a space in front. Only pre-tokenizers that have the question are changed.
fn prefix_space(tokenizer: &mut Tokenizer, space: bool) -> Result<(), TextError> {
    let Some(current) = tokenizer.get_pre_tokenizer() else { return Ok(()) };
    let mut json = serde_json::to_value(current).map_err(|error| unusable(&error))?;
    if let Some(flag) = json.get_mut("add_prefix_space") {
        *flag = Value::Bool(space);
        let changed: PreTokenizerWrapper = serde_json::from_value(json).map_err(|error| unusable(&error))?;
        tokenizer.with_pre_tokenizer(Some(changed));
    }
    Ok(())
}

fn unusable(error: &serde_json::Error) -> TextError {
    TextError::Unusable { file: "tokenizer_config.json", reason: error.to_string() }
}
