//! A request for a message, as one for a chat.

use serde_json::{Map, Value, json};

use super::super::chats::SAMPLING;
use super::super::error::ApiError;
use super::super::fields::Fields;
use super::blocks::messages;

/// What a chat's fields are called here.
const NAMES: [(&str, &str); 5] = [
    ("stop", "stop_sequences"),
    ("max_completion_tokens", "max_tokens"),
    ("response_format", "output_config.format"),
    (".function.parameters", ".input_schema"),
    (".function.", "."),
];

/// The same error in the words of this interface.
pub(super) fn reworded(error: ApiError) -> ApiError {
    error.renamed(&NAMES)
}

/// The same request as one for a chat; `counted`: nothing is to be generated.
///
/// # Errors
/// 400, naming the field.
pub(super) fn chat(mut fields: Fields, counted: bool) -> Result<Value, ApiError> {
    let mut chat = Map::new();
    let mut put = |name: &str, value: Value| drop(chat.insert(name.to_owned(), value));
    for (name, harmless) in [("container", None), ("mcp_servers", Some(json!([])))] {
        fields.refuse(name, harmless.as_slice())?;
    }
    let messages = messages(fields.take("system"), fields.take("messages"))?;
    // A last message of the assistant is the beginning of its answer.
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        if messages.last().is_some_and(|last| last.get("tool_calls").is_some()) {
            return Err(ApiError::field("messages", "end with a tool_use: a message with its tool_result must follow"));
        }
        put("add_generation_prompt", false.into());
        put("continue_final_message", true.into());
    }
    put("messages", messages.into());
    match fields.take("max_tokens") {
        Some(most) if !counted => {
            // As in chats, but for their word for all that there is room for.
            if most.as_f64().is_none_or(|most| most < 1.0 || most.fract() != 0.0) {
                return Err(ApiError::field("max_tokens", "must be a whole number of at least 1"));
            }
            put("max_completion_tokens", most);
        }
        None if !counted => return Err(ApiError::field("max_tokens", "is missing")),
        _ => {}
    }
    if let Some(tools) = tools(fields.take("tools"))? {
        put("tools", tools);
    }
    if let Some(choice) = fields.take("tool_choice") {
        put("tool_choice", tool_choice(&choice)?);
        match choice.get("disable_parallel_tool_use") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(disabled)) => put("parallel_tool_calls", (!disabled).into()),
            Some(_) => return Err(ApiError::field("tool_choice.disable_parallel_tool_use", "must be true or false")),
        }
    }
    match fields.take("thinking") {
        None => {}
        Some(thinking) => match thinking.get("type").and_then(Value::as_str) {
            // What templates call so.
            Some("disabled") => put("enable_thinking", false.into()),
            // A model that thinks does so in its text, for as long as it likes.
            Some(_) => {}
            None => return Err(ApiError::field("thinking", "must be an object with a type")),
        },
    }
    // Two places, since it was moved.
    let configured = fields.take("output_config").and_then(|mut config| Some(config.get_mut("format")?.take()));
    let format = configured.filter(|format| !format.is_null()).or_else(|| fields.take("output_format"));
    if let Some(format) = format {
        let schema = format.get("schema").filter(|_| format.get("type").and_then(Value::as_str) == Some("json_schema"));
        let schema =
            schema.ok_or_else(|| ApiError::field("output_config.format", "must be a json_schema with a schema"))?;
        let named = json!({ "name": "output", "schema": schema, "strict": true });
        put("response_format", json!({ "type": "json_schema", "json_schema": named }));
    }
    for name in SAMPLING.into_iter().chain(["model", "stream"]) {
        if let Some(value) = fields.take(name) {
            put(name, value);
        }
    }
    if let Some(stop) = fields.take("stop_sequences") {
        if !stop.is_array() {
            return Err(ApiError::field("stop_sequences", "must be a list of texts"));
        }
        put("stop", stop);
    }
    Ok(chat.into())
}

/// The tools as chats have them.
fn tools(tools: Option<Value>) -> Result<Option<Value>, ApiError> {
    let list = match tools {
        None => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::field("tools", "must be a list of tools")),
    };
    let tool = |(number, mut tool): (usize, Value)| {
        let wrong = |field: &str, message: String| Err(ApiError::field(format!("tools[{number}]{field}"), message));
        match tool.get("type") {
            None | Some(Value::Null) => {}
            Some(kind) if kind == "custom" => {}
            Some(kind) => {
                let kind = kind.as_str().map_or_else(|| kind.to_string(), str::to_owned);
                let message = format!(
                    "is {kind}, which this server does not have; it knows tools with an `input_schema` alone: leave it out, or turn it \
                     off in your client"
                );
                return wrong(".type", message);
            }
        }
        if !tool.get("input_schema").is_some_and(Value::is_object) {
            return wrong(".input_schema", "must be an object".to_owned());
        }
        // In the order in which models see them.
        let parts =
            [("name", "name"), ("description", "description"), ("input_schema", "parameters"), ("strict", "strict")];
        let parts = parts.into_iter().filter_map(|(here, there)| {
            let value = tool.get_mut(here)?.take();
            let says_nothing = value.is_null() || (here == "strict" && value == json!(false));
            (!says_nothing).then(|| (there.to_owned(), value))
        });
        let function: Map<String, Value> = parts.collect();
        Ok(json!({ "type": "function", "function": function }))
    };
    list.into_iter().enumerate().map(tool).collect::<Result<Vec<_>, _>>().map(|list| Some(list.into()))
}

/// Which tool must be called, as chats have it.
fn tool_choice(choice: &Value) -> Result<Value, ApiError> {
    match choice.get("type").and_then(Value::as_str) {
        Some("auto") => Ok("auto".into()),
        Some("any") => Ok("required".into()),
        Some("none") => Ok("none".into()),
        Some("tool") => Ok(json!({ "type": "function", "function": { "name": choice.get("name") } })),
        _ => Err(ApiError::field("tool_choice", "must be an object with the type auto, any, tool or none")),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;

    use super::*;

    fn asked(more: Value) -> Result<Value, String> {
        let mut request = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]});
        more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
        let fields = Fields::parse(&Bytes::from(request.to_string())).map_err(|error| error.json().to_string())?;
        chat(fields, false).map_err(|error| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_request_becomes_one_for_a_chat() {
        let user = json!({"role": "user", "content": "x"});
        assert_eq!(asked(json!({})), Ok(json!({"messages": [user], "max_completion_tokens": 5, "model": "m"})));
        let tool = json!({"name": "look", "input_schema": {"type": "object", "z": 1}, "description": "d", "cache_control": {"type": "ephemeral"}});
        let schema = json!({"type": "object"});
        let all = asked(json!({
            "system": "s", "temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop_sequences": ["a", "b"], "stream": true, "tools": [tool],
            "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": true}, "thinking": {"type": "disabled"},
            "metadata": {"user_id": "u"}, "service_tier": "auto", "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}},
            "mcp_servers": [], "container": null, "unknown": {"a": 1},
        }));
        let function = json!({"name": "look", "description": "d", "parameters": {"type": "object", "z": 1}});
        let form = json!({"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": true}});
        let expected = json!({
            "messages": [{"role": "system", "content": "s"}, user], "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
            "stop": ["a", "b"], "stream": true, "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "look"}}, "parallel_tool_calls": false, "enable_thinking": false,
            "response_format": form, "model": "m",
        });
        assert_eq!(all, Ok(expected));
        for (choice, word) in [("auto", "auto"), ("any", "required"), ("none", "none")] {
            assert_eq!(asked(json!({"tool_choice": {"type": choice}})).unwrap()["tool_choice"], word);
        }
        for thinking in [json!({"type": "enabled", "budget_tokens": 1024}), json!({"type": "adaptive"})] {
            assert_eq!(asked(json!({"thinking": thinking})).unwrap().get("enable_thinking"), None);
        }
    }

    #[test]
    fn a_last_message_of_the_assistant_is_gone_on_from() {
        let begun = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "The"}]);
        let chat = asked(json!({"messages": begun})).unwrap();
        assert_eq!((&chat["add_generation_prompt"], &chat["continue_final_message"]), (&json!(false), &json!(true)));
        assert_eq!(chat["messages"], begun);
        let called =
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]});
        assert_eq!(asked(json!({"messages": [{"role": "user", "content": "x"}, called]})), Err("messages".to_owned()));
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (more, param) in [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": "5"}), "max_tokens"),
            (json!({"messages": null}), "messages"),
            (json!({"stop_sequences": "x"}), "stop_sequences"),
            (json!({"tools": {}}), "tools"),
            (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
            (json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "tools[0].type"),
            (json!({"tool_choice": "auto"}), "tool_choice"),
            (json!({"tool_choice": {"type": "required"}}), "tool_choice"),
            (
                json!({"tool_choice": {"type": "any", "disable_parallel_tool_use": 1}}),
                "tool_choice.disable_parallel_tool_use",
            ),
            (json!({"thinking": true}), "thinking"),
            (json!({"output_config": {"format": {"type": "text"}}}), "output_config.format"),
            (json!({"container": "c"}), "container"),
            (json!({"mcp_servers": [{"name": "x"}]}), "mcp_servers"),
        ] {
            assert_eq!(asked(more.clone()), Err(param.to_owned()), "{more}");
        }
        for (here, there) in [
            ("stop", "stop_sequences"),
            ("stop_token_ids", "stop_token_ids"),
            ("max_completion_tokens", "max_tokens"),
            ("tools[3].function.name", "tools[3].name"),
            ("tools[3].function.parameters", "tools[3].input_schema"),
        ] {
            let told = reworded(ApiError::field(here, "is wrong")).json();
            assert_eq!(
                (&told["error"]["param"], &told["error"]["message"]),
                (&json!(there), &json!(format!("`{there}` is wrong")))
            );
        }
    }
}
