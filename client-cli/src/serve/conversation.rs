//! The messages of a request, and everything else that its chat template is told.

use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use crate::chat::{Call, Conversation, Ending, Function, Json, ToolFormat, Turn, Variables};

/// Most messages of a conversation.
const MESSAGES: usize = 10_000;
/// Who may speak.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
/// What templates are told by fields of their own.
const NO_VARIABLES: [&str; 4] = ["messages", "tools", "tokenize", "return_dict"];

/// Fields whose objects keep the order of their keys: models see them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ordered {
    tools: Option<Json>,
    documents: Option<Json>,
    chat_template_kwargs: Option<Json>,
}

/// Takes the conversation out of a request, whose whole body is `body`. `told`: the template is told of the tools; `format` is how the
/// model writes calls.
///
/// # Errors
/// 400, naming the field.
pub(super) fn take(
    fields: &mut Fields,
    body: &[u8],
    told: bool,
    format: Option<ToolFormat>,
) -> Result<Conversation, ApiError> {
    let ordered: Ordered = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the request cannot be read: {error}")))?;
    let mut turns = messages(fields.take("messages"))?;
    if format == Some(ToolFormat::Mistral) {
        shorten_ids(&mut turns);
    }
    fields.refuse("chat_template", &[])?;
    let mut variables = match fields.take("chat_template_kwargs") {
        None => Variables::new(),
        Some(Value::Object(named)) => {
            let of = |name: &str| ordered.chat_template_kwargs.as_ref().and_then(|all| all.get_attr(name).ok());
            named.keys().filter_map(|name| Some((name.clone(), of(name)?))).collect()
        }
        Some(_) => return Err(ApiError::field("chat_template_kwargs", "must be an object")),
    };
    for name in NO_VARIABLES.into_iter().chain(["chat_template"]) {
        if variables.remove(name).is_some_and(|value| !value.is_none()) {
            let what =
                if name == "chat_template" { "is not supported by this server" } else { "is no variable of templates" };
            return Err(ApiError::field(format!("chat_template_kwargs.{name}"), what));
        }
    }
    // Not vLLM's, but what other servers of Qwen's models take.
    if let Some(thinking) = fields.choice("enable_thinking")? {
        variables.entry("enable_thinking".to_owned()).or_insert_with(|| Json::from(thinking));
    }
    // As in vLLM the two may stand among the variables as well, and those count more.
    let mut flag = |name: &str| {
        let field = fields.choice(name)?;
        match variables.remove(name) {
            None => Ok(field),
            Some(value) if value.is_none() => Ok(field),
            Some(value) if value == Json::from(true) || value == Json::from(false) => Ok(Some(value.is_true())),
            Some(_) => Err(ApiError::field(format!("chat_template_kwargs.{name}"), "must be true or false")),
        }
    };
    let (answer, continued) = (flag("add_generation_prompt")?, flag("continue_final_message")?);
    let ending = match (answer.unwrap_or(true), continued.unwrap_or(false)) {
        (true, true) => {
            let message = "cannot be true unless `add_generation_prompt` is false";
            return Err(ApiError::field("continue_final_message", message));
        }
        (true, false) => Ending::Answer,
        (false, true) => Ending::Continued,
        (false, false) => Ending::Closed,
    };
    let documents = variables.remove("documents").or(ordered.documents).filter(|documents| !documents.is_none());
    let tools = ordered.tools.filter(|_| told);
    Ok(Conversation { turns, tools, documents, variables, ending })
}

/// The messages of a request. A content may be a text or a list of parts of type `text`.
fn messages(value: Option<Value>) -> Result<Vec<Turn>, ApiError> {
    let list = match value {
        None => return Err(ApiError::field("messages", "is missing")),
        Some(Value::Array(list)) if (1..=MESSAGES).contains(&list.len()) => list,
        Some(_) => return Err(ApiError::field("messages", format!("must be a list of 1 to {MESSAGES} messages"))),
    };
    list.into_iter().enumerate().map(|(number, value)| message(number, value)).collect()
}

fn message(number: usize, mut value: Value) -> Result<Turn, ApiError> {
    let wrong = |field: &str, message: String| Err(ApiError::field(format!("messages[{number}].{field}"), message));
    let role = match value.get("role").and_then(Value::as_str) {
        // OpenAI's newer and older names.
        Some("developer") => "system",
        Some("function") => "tool",
        Some(role) if ROLES.contains(&role) => role,
        _ => return wrong("role", "must be system, developer, user, assistant or tool".to_owned()),
    };
    let mut turn = Turn::new(role, String::new());
    turn.content = match value.get_mut("content").map(Value::take) {
        // What called tools has no content.
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => match texts(&parts) {
            Ok(text) => text,
            Err(reason) => return wrong("content", reason),
        },
        Some(_) => return wrong("content", "must be a text, a list of parts, or null".to_owned()),
    };
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    turn.name = text("name");
    turn.tool_call_id = text("tool_call_id");
    turn.reasoning_content = text("reasoning_content").or_else(|| text("reasoning"));
    turn.tool_calls = match value.get("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(calls)) => {
            let call = |(at, value): (usize, &Value)| {
                call(value).map_err(|reason| ApiError::field(format!("messages[{number}].tool_calls[{at}]"), reason))
            };
            calls.iter().enumerate().map(call).collect::<Result<Vec<_>, _>>()?
        }
        Some(_) => return wrong("tool_calls", "must be a list".to_owned()),
    };
    if let (true, Some(function @ Value::Object(_))) = (turn.tool_calls.is_empty(), value.get("function_call")) {
        // OpenAI's older form of one call.
        match call(&serde_json::json!({ "function": function })) {
            Ok(call) => turn.tool_calls.push(call),
            Err(reason) => return wrong("function_call", reason),
        }
    }
    Ok(turn)
}

/// The text of a content's parts, a line each as in vLLM. What a model thought is no part of it.
pub(super) fn texts(parts: &[Value]) -> Result<String, String> {
    let text = |part: &Value| match (part, part.get("type").and_then(Value::as_str)) {
        (Value::String(text), _) => Ok(text.clone()),
        (_, Some("text" | "input_text" | "output_text" | "refusal")) => {
            let text = part.get("text").or_else(|| part.get("refusal")).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(|| "has a part of type text without a text".to_owned())
        }
        (_, Some(kind)) => Err(format!("has a part of type {kind}: this model reads text alone")),
        _ => Err("has a part without a type".to_owned()),
    };
    let is_thought = |part: &&Value| matches!(part.get("type").and_then(Value::as_str), Some("thinking" | "reasoning"));
    let parts = parts.iter().filter(|part| !is_thought(part));
    Ok(parts.map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// A call that the model made. Its arguments are a text in the interface and objects in templates.
fn call(value: &Value) -> Result<Call, String> {
    let name = value.pointer("/function/name").and_then(Value::as_str).ok_or("must have a function with a name")?;
    let arguments = match value.pointer("/function/arguments") {
        None | Some(Value::Null) => Json::from_pairs(Vec::<(String, Json)>::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Json::from_pairs(Vec::<(String, Json)>::new()),
        // What is no JSON the model wrote so, and is shown so.
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_str())),
        Some(other) => serde_json::from_value(other.clone()).map_err(|error| error.to_string())?,
    };
    let id = value.get("id").and_then(Value::as_str).map(str::to_owned);
    Ok(Call { id, r#type: "function", function: Function { name: name.to_owned(), arguments } })
}

/// Mistral's templates refuse ids of other than nine characters; other programs' are longer. vLLM keeps the last nine as well.
fn shorten_ids(turns: &mut [Turn]) {
    let ids = turns.iter_mut().flat_map(|turn| {
        turn.tool_calls.iter_mut().filter_map(|call| call.id.as_mut()).chain(turn.tool_call_id.as_mut())
    });
    for id in ids {
        let start = id.char_indices().rev().nth(8).map_or(0, |(at, _)| at);
        id.drain(..start);
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use serde_json::json;

    use super::*;

    fn taken(request: &Value) -> Result<Conversation, String> {
        let body = Bytes::from(request.to_string());
        let mut fields = Fields::parse(&body).map_err(|error| error.json().to_string())?;
        take(&mut fields, &body, true, None)
            .map_err(|error| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn contents_are_texts_parts_or_nothing() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let list = json!([{"role": "developer", "content": "s"}, {"role": "user", "content": parts},
            {"role": "assistant", "content": null}, {"role": "assistant"}]);
        let said: Vec<(String, String)> =
            messages(Some(list)).unwrap().into_iter().map(|turn| (turn.role, turn.content)).collect();
        let expected = [("system", "s"), ("user", "a\nb"), ("assistant", ""), ("assistant", "")];
        assert_eq!(said, expected.map(|(role, text)| (role.to_owned(), text.to_owned())));
        let thought = json!([{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}]);
        assert_eq!(messages(Some(thought)).unwrap()[0].content, "a");
        let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
        for wrong in [
            json!([]),
            json!("hello"),
            json!([3]),
            json!([{"content": "x"}]),
            json!([{"role": "user", "content": image}]),
            json!([{"role": "user", "content": 3}]),
            json!([{"role": "robot", "content": "x"}]),
            json!([{"role": "assistant", "tool_calls": [{"function": {}}]}]),
        ] {
            assert!(messages(Some(wrong.clone())).is_err(), "{wrong}");
        }
        let error = messages(Some(json!([{"role": "user", "content": image}]))).unwrap_err().json().to_string();
        assert!(error.contains("image_url") && error.contains("messages[0].content"), "{error}");
    }

    #[test]
    fn arguments_of_calls_become_objects_in_their_order() {
        let call = |arguments: Value| json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}});
        let calls = json!([call(json!("{\"z\": 1, \"a\": {}}")), call(json!("")), call(json!("no JSON"))]);
        let turns = messages(Some(json!([{"role": "assistant", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "in the yard"}])))
        .unwrap();
        let arguments = |at: usize| serde_json::to_string(&turns[0].tool_calls[at].function.arguments).unwrap();
        assert_eq!([arguments(0), arguments(1), arguments(2)], [r#"{"z":1,"a":{}}"#, "{}", r#""no JSON""#]);
        assert_eq!(turns[1].tool_call_id.as_deref(), Some("c1"));
        let older = json!([{"role": "assistant", "content": null, "function_call": {"name": "look", "arguments": "{}"}},
            {"role": "function", "name": "look", "content": "in the yard"}]);
        let older = messages(Some(older)).unwrap();
        assert_eq!((older[0].tool_calls[0].function.name.as_str(), older[1].role.as_str()), ("look", "tool"));
        let mut turns = turns;
        turns[1].tool_call_id = Some("call_0123456789".to_owned());
        shorten_ids(&mut turns);
        assert_eq!(turns[1].tool_call_id.as_deref(), Some("123456789"));
    }

    #[test]
    fn templates_are_told_their_variables() {
        let with = |more: Value| {
            let mut request = json!({"messages": [{"role": "user", "content": "a"}]});
            more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
            taken(&request)
        };
        let of = |conversation: Conversation, name: &str| conversation.variables.get(name).cloned();
        let kwargs = |value: Value| with(json!({"chat_template_kwargs": value}));
        assert_eq!(of(kwargs(json!({"enable_thinking": false})).unwrap(), "enable_thinking"), Some(Json::from(false)));
        assert_eq!(of(with(json!({"enable_thinking": false})).unwrap(), "enable_thinking"), Some(Json::from(false)));
        assert_eq!(with(json!({})).unwrap().ending, Ending::Answer);
        assert_eq!(with(json!({"add_generation_prompt": false})).unwrap().ending, Ending::Closed);
        let open = json!({"add_generation_prompt": false, "continue_final_message": true});
        assert_eq!(
            (with(open.clone()).unwrap().ending, kwargs(open).unwrap().ending),
            (Ending::Continued, Ending::Continued)
        );
        for (request, field) in [
            (json!({"continue_final_message": true}), "continue_final_message"),
            (json!({"chat_template": "{{ 1 }}"}), "chat_template"),
            (json!({"chat_template_kwargs": 3}), "chat_template_kwargs"),
            (json!({"chat_template_kwargs": {"chat_template": "x"}}), "chat_template_kwargs.chat_template"),
            (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
            (json!({"enable_thinking": "no"}), "enable_thinking"),
        ] {
            assert_eq!(with(request.clone()).map(|_| ()), Err(field.to_owned()), "{request}");
        }
        assert!(with(json!({"chat_template_kwargs": null, "chat_template": null})).is_ok());
    }
}
