//! `/v1/chat/completions`: a conversation, answered.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::Value;

use super::app::{App, blocking};
use super::completions::room;
use super::engine::Job;
use super::error::ApiError;
use super::parameters::{Fields, Parameters};
use super::reply::{Kind, Reply};
use crate::chat::Message;

/// Most messages of a conversation.
const MESSAGES: usize = 10_000;

/// Answers a request; `model` is the model that it names.
pub(super) async fn complete(app: &Arc<App>, body: Bytes, model: &mut String) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut fields = Fields::parse(&body)?;
    let parameters = Parameters::take(&mut fields)?;
    let served = app.models.find(&parameters.model)?;
    model.clone_from(&served.name);
    let empty = Value::Array(Vec::new());
    let text = serde_json::json!({ "type": "text" });
    for (name, harmless) in [
        ("tools", vec![empty.clone()]),
        ("functions", vec![empty]),
        ("tool_choice", vec![Value::from("none"), Value::from("auto")]),
        ("function_call", vec![Value::from("none"), Value::from("auto")]),
        ("response_format", vec![text]),
        ("modalities", vec![Value::from(vec!["text"])]),
        ("logprobs", vec![Value::Bool(false)]),
        ("top_logprobs", vec![Value::from(0)]),
    ] {
        fields.refuse(name, &harmless)?;
    }
    let messages = messages(fields.take("messages"))?;
    let tokenizer = app.engine.tokenizer().clone();
    let rendering = app.clone();
    let prompt = blocking(move || {
        let wrong = |error: &dyn std::fmt::Display| ApiError::field("messages", format!("cannot be used: {error}"));
        let template = rendering.template.as_ref().map_err(|missing| ApiError::invalid(missing.clone()))?;
        let text = template.render(&messages).map_err(|error| wrong(&error))?;
        // Special tokens are in the template.
        tokenizer.encode_continuation(&text).map_err(|error| wrong(&error))
    });
    let prompt = Arc::new(prompt.await?);
    let max_new_tokens = room(app, &served, &parameters, prompt.len(), "messages", app.default_new_tokens)?;
    let jobs = (0..parameters.n).map(|number| Job {
        number,
        model: served.clone(),
        prompt: prompt.clone(),
        sampling: parameters.sampling(number),
        max_new_tokens,
        stop: parameters.stop.clone(),
        conversation: true,
        arrived,
    });
    let receiver = app.engine.start(jobs.collect()).await?;
    let reply = Reply::new(Kind::Chat, parameters.model, parameters.n, prompt.len(), receiver);
    if parameters.stream { reply.streamed(parameters.include_usage).await } else { reply.whole().await }
}

/// The messages of a request. A content may be a text or a list of parts of type `text`.
fn messages(value: Option<Value>) -> Result<Vec<Message>, ApiError> {
    let list = match value {
        None => return Err(ApiError::field("messages", "is missing")),
        Some(Value::Array(list)) if (1..=MESSAGES).contains(&list.len()) => list,
        Some(_) => return Err(ApiError::field("messages", format!("must be a list of 1 to {MESSAGES} messages"))),
    };
    list.into_iter().enumerate().map(|(number, value)| message(number, value)).collect()
}

fn message(number: usize, mut value: Value) -> Result<Message, ApiError> {
    let wrong = |field: &str, message: &str| Err(ApiError::field(format!("messages[{number}].{field}"), message));
    let Some(role) = value.get("role").and_then(Value::as_str) else { return wrong("role", "must be a text") };
    // OpenAI's newer name of the same.
    let role = if role == "developer" { "system" } else { role };
    if !["system", "user", "assistant"].contains(&role) {
        return wrong("role", "must be system, user or assistant");
    }
    let role = role.to_owned();
    let content = match value.get_mut("content").map(Value::take) {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let text =
                |part: &Value| (part.get("type")? == "text").then(|| part.get("text")?.as_str().map(str::to_owned))?;
            match parts.iter().map(text).collect::<Option<Vec<String>>>() {
                Some(texts) => texts.concat(),
                None => return wrong("content", "may only have parts of type text"),
            }
        }
        _ => return wrong("content", "must be a text or a list of parts"),
    };
    Ok(Message { role, content })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_texts_or_parts() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let list = json!([{"role": "developer", "content": "s", "name": "x"}, {"role": "user", "content": parts}]);
        assert_eq!(messages(Some(list)), Ok(vec![Message::new("system", "s"), Message::new("user", "ab")]));
        let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
        for wrong in [
            json!([]),
            json!("hello"),
            json!([3]),
            json!([{"role": "user"}]),
            json!([{"role": "tool", "content": "x"}]),
            json!([{"content": "x"}]),
            json!([{"role": "user", "content": image}]),
            json!([{"role": "user", "content": 3}]),
        ] {
            assert!(messages(Some(wrong.clone())).is_err(), "{wrong}");
        }
    }
}
