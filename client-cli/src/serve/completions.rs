//! `/v1/completions`: a text, continued.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::Value;

use super::app::{App, blocking};
use super::engine::Job;
use super::error::ApiError;
use super::models::ServedModel;
use super::parameters::{Fields, Parameters};
use super::reply::{Kind, Reply};

/// Tokens that a completion gets which asks for no number, as with OpenAI.
const DEFAULT_TOKENS: usize = 16;
/// Most texts of a request: prompts times answers to each.
const TEXTS: usize = 16;

/// A prompt, as text or as tokens.
#[derive(Debug, Clone, PartialEq)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Answers a request; `model` is the model that it names.
pub(super) async fn complete(app: &Arc<App>, body: Bytes, model: &mut String) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut fields = Fields::parse(&body)?;
    let parameters = Parameters::take(&mut fields)?;
    let served = app.models.find(&parameters.model)?;
    model.clone_from(&served.name);
    for (name, harmless) in
        [("echo", Value::Bool(false)), ("suffix", Value::from("")), ("logprobs", Value::Bool(false))]
    {
        fields.refuse(name, &[harmless])?;
    }
    let prompts = prompts(fields.take("prompt"), app.engine.vocabulary())?;
    if prompts.len() * parameters.n > TEXTS {
        let message = format!("and `n` ask for {} texts, {TEXTS} are allowed", prompts.len() * parameters.n);
        return Err(ApiError::field("prompt", message));
    }
    let tokenizer = app.engine.tokenizer().clone();
    let encoded = blocking(move || {
        let encode = |prompt| match prompt {
            Prompt::Tokens(tokens) => Ok(tokens),
            Prompt::Text(text) => {
                tokenizer.encode(&text).map_err(|error| ApiError::field("prompt", format!("{error}")))
            }
        };
        prompts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
    });
    let encoded = encoded.await?;
    let mut jobs = Vec::new();
    let prompt_tokens = encoded.iter().map(Vec::len).sum();
    for prompt in encoded {
        let max_new_tokens = room(app, &served, &parameters, prompt.len(), "prompt", DEFAULT_TOKENS)?;
        let prompt = Arc::new(prompt);
        for _ in 0..parameters.n {
            jobs.push(Job {
                number: jobs.len(),
                model: served.clone(),
                prompt: prompt.clone(),
                sampling: parameters.sampling(jobs.len()),
                max_new_tokens,
                stop: parameters.stop.clone(),
                conversation: false,
                arrived,
            });
        }
    }
    let texts = jobs.len();
    let receiver = app.engine.start(jobs).await?;
    let reply = Reply::new(Kind::Completion, parameters.model, texts, prompt_tokens, receiver);
    if parameters.stream { reply.streamed(parameters.include_usage).await } else { reply.whole().await }
}

/// The number of tokens that a request gets behind a prompt of `prompt` tokens, which the field `name` gave.
///
/// # Errors
/// 400 if the prompt is empty, or it does not fit into the model with what is asked for, or more is asked for than allowed.
pub(super) fn room(
    app: &App,
    model: &ServedModel,
    parameters: &Parameters,
    prompt: usize,
    name: &str,
    default: usize,
) -> Result<usize, ApiError> {
    if prompt == 0 {
        return Err(ApiError::field(name, "has no tokens"));
    }
    let room = model.room.saturating_sub(prompt);
    if room == 0 {
        let message = format!("has {prompt} tokens, and the model has room for {} with at least one more", model.room);
        return Err(ApiError::too_long(name, message));
    }
    let Some(asked) = parameters.max_new_tokens else { return Ok(default.min(app.max_new_tokens).min(room)) };
    if asked > app.max_new_tokens {
        return Err(ApiError::field("max_tokens", format!("is above this server's limit of {}", app.max_new_tokens)));
    }
    if asked > room {
        let message = format!("asks for {asked} tokens, and the model has room for {room} behind {prompt}");
        return Err(ApiError::too_long("max_tokens", message));
    }
    Ok(asked)
}

/// The prompts of a request: a text, texts, tokens, or lists of tokens.
fn prompts(value: Option<Value>, vocabulary: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong =
        || ApiError::field("prompt", "must be a text, a list of texts, or a list of token ids or of such lists");
    let Some(value) = value else { return Err(ApiError::field("prompt", "is missing")) };
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) if !list.is_empty() => list,
        _ => return Err(wrong()),
    };
    if list.iter().all(Value::is_u64) {
        return Ok(vec![Prompt::Tokens(tokens(&list, vocabulary)?)]);
    }
    let prompt = |value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => tokens(&ids, vocabulary).map(Prompt::Tokens),
        _ => Err(wrong()),
    };
    list.into_iter().map(prompt).collect()
}

fn tokens(ids: &[Value], vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    let token = |id: &Value| {
        let known = id.as_u64().filter(|&id| id < vocabulary as u64).and_then(|id| u32::try_from(id).ok());
        known.ok_or_else(|| ApiError::field("prompt", format!("has {id}, which is no token of {vocabulary}")))
    };
    ids.iter().map(token).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prompts_are_texts_or_tokens() {
        let of = |value: Value| prompts(Some(value), 100);
        assert_eq!(of(json!("a")), Ok(vec![Prompt::Text("a".to_owned())]));
        assert_eq!(of(json!(["a", [1, 99]])), Ok(vec![Prompt::Text("a".to_owned()), Prompt::Tokens(vec![1, 99])]));
        assert_eq!(of(json!([1, 2])), Ok(vec![Prompt::Tokens(vec![1, 2])]));
        for wrong in
            [json!([]), json!(3), json!([1, 100]), json!([-1]), json!([1, "a"]), json!([{"a": 1}]), json!([1.5])]
        {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(prompts(None, 100).is_err());
    }
}
