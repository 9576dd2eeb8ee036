//! Fields of other servers that change the answer, and that this one does not know: who asks for them should hear it.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;

/// Refuses them, unless they ask for what is done anyway.
///
/// # Errors
/// 400, naming the field.
pub(super) fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    // Fields of vLLM and SGLang, with the values that clients send by default.
    let harmless: [(&str, Value); 11] = [
        ("allowed_token_ids", json!([])),
        ("bad_words", json!([])),
        ("include_stop_str_in_output", json!(false)),
        ("logits_processors", json!([])),
        ("min_tokens", json!(0)),
        ("no_stop_trim", json!(false)),
        ("prompt_embeds", json!([])),
        ("return_token_ids", json!(false)),
        ("return_tokens_as_token_ids", json!(false)),
        ("skip_special_tokens", json!(true)),
        ("truncate_prompt_tokens", json!(0)),
    ];
    harmless.into_iter().try_for_each(|(name, value)| fields.refuse(name, &[value]))
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;

    use super::*;

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        let refused = |request: Value| {
            let mut fields = Fields::parse(&Bytes::from(request.to_string())).unwrap();
            let error = refuse(&mut fields).err()?;
            error.json()["error"]["param"].as_str().map(str::to_owned)
        };
        let defaults = json!({"min_tokens": 0, "skip_special_tokens": true, "bad_words": [], "truncate_prompt_tokens": null, "top_k": 5});
        assert_eq!(refused(defaults), None);
        for (name, value) in [
            ("min_tokens", json!(5)),
            ("skip_special_tokens", json!(false)),
            ("bad_words", json!(["a"])),
            ("return_token_ids", json!(true)),
            ("truncate_prompt_tokens", json!(100)),
        ] {
            assert_eq!(refused(json!({name: value})).as_deref(), Some(name));
        }
    }
}
