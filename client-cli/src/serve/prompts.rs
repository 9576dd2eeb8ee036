//! Texts that requests bring, as texts or as tokens.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::parameters::token_ids;
use crate::text::TextTokenizer;

/// A prompt, as text or as tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// A text.
    Text(String),
    /// Its tokens.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Its text, of tokens only if that is `shown`, and its tokens; `special`: with those that the tokenizer puts around a text.
    ///
    /// # Errors
    /// 400 if the tokenizer refuses it, naming the field that gave it.
    pub(super) fn encode(
        self,
        tokenizer: &TextTokenizer,
        field: &str,
        special: bool,
        shown: bool,
    ) -> Result<(String, Arc<Vec<u32>>), ApiError> {
        let wrong = |error| ApiError::field(field, format!("cannot be used: {error}"));
        match self {
            Self::Tokens(tokens) if shown => Ok((tokenizer.decode(&tokens).map_err(wrong)?, Arc::new(tokens))),
            Self::Tokens(tokens) => Ok((String::new(), Arc::new(tokens))),
            Self::Text(text) => {
                let tokens = if special { tokenizer.encode(&text) } else { tokenizer.encode_continuation(&text) };
                let tokens = tokens.map_err(wrong)?;
                Ok((text, Arc::new(tokens)))
            }
        }
    }
}

/// The prompts of a request: a text, texts, tokens, or lists of tokens.
pub(super) fn prompts(value: Option<Value>, field: &str, vocabulary: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong = || ApiError::field(field, "must be a text, a list of texts, or a list of token ids or of such lists");
    let Some(value) = value else { return Err(ApiError::field(field, "is missing")) };
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(wrong()),
    };
    if list.iter().all(Value::is_number) {
        return Ok(vec![Prompt::Tokens(token_ids(field, &list, vocabulary)?)]);
    }
    let prompt = |value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => token_ids(field, &ids, vocabulary).map(Prompt::Tokens),
        _ => Err(wrong()),
    };
    list.into_iter().map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prompts_are_texts_or_tokens() {
        let of = |value: Value| prompts(Some(value), "prompt", 100);
        assert_eq!(of(json!("a")), Ok(vec![Prompt::Text("a".to_owned())]));
        assert_eq!(of(json!(["a", [1, 99]])), Ok(vec![Prompt::Text("a".to_owned()), Prompt::Tokens(vec![1, 99])]));
        assert_eq!(of(json!([1, 2])), Ok(vec![Prompt::Tokens(vec![1, 2])]));
        for wrong in
            [json!([]), json!(3), json!([1, 100]), json!([-1]), json!([1, "a"]), json!([{"a": 1}]), json!([1.5])]
        {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(prompts(None, "prompt", 100).is_err());
    }
}
