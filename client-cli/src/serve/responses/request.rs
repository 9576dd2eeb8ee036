//! A request for a response, as one for a chat.

use serde_json::{Map, Value, json};

use super::super::chats::SAMPLING;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::kept::Kept;
use super::super::parameters::TOP;
use super::items::{items, messages};
use super::tools::{tool_choice, tools};

/// What a chat's fields are called here.
const NAMES: [(&str, &str); 5] = [
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    (".function.", "."),
];
/// What else may be told of an answer. None of it but the probabilities ever is in one of this server.
const INCLUDED: [&str; 8] = [
    LOGPROBS,
    "reasoning.encrypted_content",
    "web_search_call.results",
    "web_search_call.action.sources",
    "file_search_call.results",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];
const LOGPROBS: &str = "message.output_text.logprobs";
/// Most pairs of `metadata`, and characters of their keys and values.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    /// The same as a request for a chat.
    pub(super) chat: Value,
    /// What the answer repeats of it.
    pub(super) repeated: Map<String, Value>,
    /// The items of the conversation so far.
    pub(super) items: Vec<Value>,
    /// Whether the answer is kept.
    pub(super) store: bool,
}

/// The same error in the words of this interface.
pub(super) fn reworded(error: ApiError) -> ApiError {
    error.renamed(&NAMES)
}

impl Asked {
    /// Takes a request apart.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(super) fn take(mut fields: Fields, kept: &Kept) -> Result<Self, ApiError> {
        refuse(&mut fields)?;
        let mut repeated = repeated(&fields)?;
        let store = fields.choice("store")?.unwrap_or(true);
        let mut chat = Map::new();
        let mut put = |name: &str, value: Value| drop(chat.insert(name.to_owned(), value));

        let mut before = match fields.text("previous_response_id")? {
            None => Vec::new(),
            Some(id) => kept.find(&id).ok_or_else(|| not_kept(&id))?.items,
        };
        let first = before.len();
        before.extend(items(fields.take("input"), kept)?);
        let mut said = messages(&before, first)?;
        // Those of an earlier answer do not count any more.
        if let Some(instructions) = fields.text("instructions")? {
            said.insert(0, json!({ "role": "system", "content": instructions }));
        }
        if said.is_empty() {
            return Err(ApiError::field("input", "has no message"));
        }
        put("messages", said.into());

        let mut list = tools(fields.take("tools"))?;
        if let Some(choice) = tool_choice(fields.take("tool_choice"), &mut list)? {
            put("tool_choice", choice);
        }
        if !list.is_empty() {
            put("tools", list.into());
        }
        if let Some(format) = format(fields.take("text"))? {
            put("response_format", format);
        }
        let included = included(fields.take("include"))?;
        let top = fields.whole("top_logprobs", 0, TOP as i64)?;
        if included {
            put("logprobs", true.into());
            put("top_logprobs", top.unwrap_or(0).into());
        }
        // Who asks for no thoughts at all means what templates call so.
        if fields.take("reasoning").is_some_and(|reasoning| reasoning.get("effort") == Some(&json!("none"))) {
            put("enable_thinking", false.into());
        }
        if let Some(most) = fields.take("max_output_tokens") {
            put("max_completion_tokens", most);
        }
        for name in SAMPLING.into_iter().chain(["model", "stream", "parallel_tool_calls", "stop"]) {
            if let Some(value) = fields.take(name) {
                put(name, value);
            }
        }
        repeated.insert("store".to_owned(), store.into());
        Ok(Self { chat: chat.into(), repeated, items: before, store })
    }
}

/// What this server cannot do, and whose absence would be noticed.
fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    let wrong = |field: &str, message: &str| Err(ApiError::field(field, message));
    if fields.flag("background")? {
        return wrong("background", "is not supported by this server: wait for the answer, or read it with `stream`");
    }
    if fields.take("conversation").is_some() {
        let message = "is not supported by this server: go on from an answer with `previous_response_id`";
        return wrong("conversation", message);
    }
    if fields.take("prompt").is_some() {
        return wrong("prompt", "is not supported by this server, which keeps no prompts: send it as `instructions`");
    }
    // What `auto` would leave out of a conversation that is too long is refused as without it.
    fields.one_of("truncation", &["auto", "disabled"])?;
    Ok(())
}

/// What answers repeat of their request, with what is missing there.
fn repeated(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    let given = |name: &str, missing: Value| (name.to_owned(), fields.get(name).cloned().unwrap_or(missing));
    let mut repeated: Map<String, Value> = [
        given("instructions", Value::Null),
        given("max_output_tokens", Value::Null),
        given("max_tool_calls", Value::Null),
        given("metadata", json!({})),
        given("parallel_tool_calls", true.into()),
        given("previous_response_id", Value::Null),
        given("prompt_cache_key", Value::Null),
        given("reasoning", json!({ "effort": null, "summary": null })),
        given("safety_identifier", Value::Null),
        given("temperature", json!(1.0)),
        given("text", json!({})),
        given("tool_choice", "auto".into()),
        given("tools", json!([])),
        given("top_logprobs", json!(0)),
        given("top_p", json!(1.0)),
        given("user", Value::Null),
    ]
    .into_iter()
    .collect();
    let texts = |(name, value): (&String, &Value)| {
        name.chars().count() <= METADATA.1 && value.as_str().is_some_and(|text| text.chars().count() <= METADATA.2)
    };
    if !repeated["metadata"].as_object().is_some_and(|pairs| pairs.len() <= METADATA.0 && pairs.iter().all(texts)) {
        let (most, key, value) = METADATA;
        let message = format!(
            "must be an object of at most {most} pairs, of keys of at most {key} characters and texts of at most {value}"
        );
        return Err(ApiError::field("metadata", message));
    }
    for name in ["reasoning", "text"] {
        if !repeated[name].is_object() {
            return Err(ApiError::field(name, "must be an object"));
        }
    }
    if repeated["text"].get("format").is_none_or(Value::is_null) {
        repeated["text"]["format"] = json!({ "type": "text" });
    }
    for (name, value) in
        [("background", json!(false)), ("service_tier", "default".into()), ("truncation", "disabled".into())]
    {
        repeated.insert(name.to_owned(), value);
    }
    Ok(repeated)
}

/// The form that `text` asks for, as chats have it.
fn format(text: Option<Value>) -> Result<Option<Value>, ApiError> {
    let wrong = || ApiError::field("text.format", "must be an object with a `type`");
    let mut format = match text.and_then(|mut text| Some(text.get_mut("format")?.take())) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(format)) => format,
        Some(_) => return Err(wrong()),
    };
    match format.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            format.remove("type");
            Ok(Some(json!({ "type": "json_schema", "json_schema": format })))
        }
        Some(_) => Ok(Some(format.into())),
        None => Err(wrong()),
    }
}

/// Whether probabilities are to be told.
fn included(include: Option<Value>) -> Result<bool, ApiError> {
    let list = match include {
        None => return Ok(false),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::field("include", "must be a list of texts")),
    };
    match list.iter().find(|name| !name.as_str().is_some_and(|name| INCLUDED.contains(&name))) {
        Some(unknown) => {
            let message = format!("has {unknown}, and may have {}", INCLUDED.join(", "));
            Err(ApiError::field("include", message))
        }
        None => Ok(list.iter().any(|name| name == LOGPROBS)),
    }
}

fn not_kept(id: &str) -> ApiError {
    let message = format!(
        "names {id:?}, which is not kept here: only the latest answers are, in memory, unless they were asked for with `store` false; send \
         the whole conversation as `input`"
    );
    ApiError::field("previous_response_id", message).with_code("previous_response_not_found")
}

#[cfg(test)]
mod tests;
