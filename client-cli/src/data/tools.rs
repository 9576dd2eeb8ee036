//! What stands beside the messages of a conversation, and calls of tools in them.
//!
//! | column | what it is |
//! |---|---|
//! | `tools` | a list of tools, or the JSON text of one, as TRL takes it |
//! | `functions` | a list of functions, as OpenAI had it before tools |
//! | `chat_template_kwargs` | variables of the template's own |
//!
//! OpenAI's interface has the arguments of a call as JSON text, chat templates mostly have them as an object.

use serde_json::{Map, Value, json};

use super::columns::Fields;
use super::problem::Problem;

/// What is given to a template, or decided here, and is no variable of it.
const NO_VARIABLES: [&str; 9] = [
    "messages",
    "conversation",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "return_assistant_tokens_mask",
];

/// The tools that a row has.
pub(super) fn of_row(fields: &Fields) -> Result<Option<Value>, Problem> {
    let list = |column: &'static str| match json_of(column, fields)? {
        None => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Ok(Some(tools)),
        Some(_) => {
            let problem = "is not a list of objects, or the JSON text of one".to_owned();
            Err(Problem::BesideMessages { column, problem })
        }
    };
    if let Some(tools) = list("tools")? {
        return Ok(Some(Value::Array(tools)));
    }
    let function = |function: Value| json!({"type": "function", "function": function});
    Ok(list("functions")?.map(|functions| functions.into_iter().map(function).collect()))
}

/// The variables that a row gives to its template.
pub(super) fn variables(fields: &Fields) -> Result<Map<String, Value>, Problem> {
    const COLUMN: &str = "chat_template_kwargs";
    let wrong = |problem: String| Problem::BesideMessages { column: COLUMN, problem };
    match json_of(COLUMN, fields)? {
        None => Ok(Map::new()),
        Some(Value::Object(named)) => match NO_VARIABLES.iter().find(|name| named.contains_key(**name)) {
            Some(name) => Err(wrong(format!("has `{name}`, which is no variable of templates"))),
            None => Ok(named),
        },
        Some(_) => Err(wrong("is not an object".to_owned())),
    }
}

/// The value of a column, read if it is JSON text; nothing if it is null or an empty text.
fn json_of(column: &'static str, fields: &Fields) -> Result<Option<Value>, Problem> {
    match fields.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => {
            let wrong =
                |error| Problem::BesideMessages { column, problem: format!("is a text that is no JSON: {error}") };
            serde_json::from_str(text).map(Some).map_err(wrong)
        }
        Some(value) => Ok(Some(nested_without_nulls(value))),
    }
}

/// An object without what is null in it, at any depth but in lists, as TRL's `remove_none_values` leaves it: columns of tables are there in
/// every row, be there something in them or not.
pub(super) fn without_nulls(object: &Map<String, Value>) -> Map<String, Value> {
    let there = object.iter().filter(|(_, value)| !value.is_null());
    there.map(|(name, value)| (name.clone(), nested_without_nulls(value))).collect()
}

fn nested_without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(without_nulls(object)),
        Value::Array(list) => list.iter().map(nested_without_nulls).collect(),
        other => other.clone(),
    }
}

/// Checks the calls of a message, and makes one of `function_call`, which OpenAI had before.
pub(super) fn calls(message: &mut Map<String, Value>) -> Result<(), String> {
    if !message.contains_key("tool_calls")
        && let Some(function) = message.remove("function_call")
    {
        message.insert("tool_calls".to_owned(), json!([{"type": "function", "function": function}]));
    }
    match message.get("tool_calls") {
        None => Ok(()),
        Some(Value::Array(calls)) => match calls.iter().position(|call| name(call).is_none()) {
            None => Ok(()),
            Some(at) => Err(format!("has a call of a tool (number {}) without the name of a function", at + 1)),
        },
        Some(_) => Err("has `tool_calls` that are not a list".to_owned()),
    }
}

fn name(call: &Value) -> Option<&str> {
    call.pointer("/function/name").or_else(|| call.get("name")).and_then(Value::as_str)
}

/// Calls as ShareGPT's data have them: the JSON of one or of several, with name and arguments.
pub(super) fn calls_of_text(value: Option<&Value>) -> Result<Value, String> {
    let value = match value {
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|error| format!("has a call of a tool that is no JSON: {error}"))?
        }
        other => other.cloned().unwrap_or_default(),
    };
    let calls = if let Value::Array(calls) = value { calls } else { vec![value] };
    Ok(calls.into_iter().map(|function| json!({"type": "function", "function": function})).collect())
}

/// A message whose calls have their arguments as objects. What is no JSON object stays as it is.
pub(super) fn with_objects(message: Value) -> Value {
    with_arguments(message, |arguments| match arguments {
        Value::String(text) if text.trim().is_empty() => Some(json!({})),
        Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
        _ => None,
    })
}

/// A message whose calls have their arguments as texts.
pub(super) fn with_text(message: Value) -> Value {
    with_arguments(message, |arguments| (!arguments.is_string()).then(|| Value::String(arguments.to_string())))
}

fn with_arguments(mut message: Value, other: impl Fn(&Value) -> Option<Value>) -> Value {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let call = if call.get("function").is_some() { call.get_mut("function") } else { Some(call) };
        if let Some(arguments) = call.and_then(|call| call.get_mut("arguments"))
            && let Some(other) = other(arguments)
        {
            *arguments = other;
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(row: Value) -> Fields {
        row.as_object().unwrap().clone()
    }

    #[test]
    fn tools_are_a_list_or_the_text_of_one_in_the_order_of_their_keys() {
        let text = r#"[{"type":"function","function":{"name":"look","description":"z","arguments":1}}]"#;
        let of = |value: Value| of_row(&row(json!({"tools": value}))).unwrap();
        let list: Value = serde_json::from_str(text).unwrap();
        for value in [list.clone(), Value::from(text)] {
            assert_eq!(of(value).unwrap().to_string(), text);
        }
        assert_eq!(of_row(&row(json!({"functions": [list[0]["function"]]}))).unwrap().unwrap().to_string(), text);
        assert_eq!((of(json!(null)), of(json!(" ")), of(json!([]))), (None, None, Some(json!([]))));
        for wrong in [json!("look"), json!(3), json!({"name": "look"}), json!(["look"])] {
            let message = of_row(&row(json!({"tools": wrong}))).unwrap_err().to_string();
            assert!(message.starts_with("`tools` is "), "{message}");
        }
    }

    #[test]
    fn variables_are_those_that_templates_have() {
        let of = |value: Value| variables(&row(json!({"chat_template_kwargs": value})));
        assert_eq!(of(json!({"enable_thinking": false, "x": null})).unwrap(), row(json!({"enable_thinking": false})));
        assert!(of(json!(null)).unwrap().is_empty());
        assert!(of(json!([1])).unwrap_err().to_string().contains("not an object"));
        assert!(of(json!({"tools": []})).unwrap_err().to_string().contains("`tools`"));
    }

    #[test]
    fn arguments_are_texts_or_objects() {
        let message = |arguments: Value| json!({"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]});
        let (object, text) = (message(json!({"b": 1, "a": 2})), message(json!("{\"b\": 1, \"a\": 2}")));
        assert_eq!(with_objects(text.clone()).to_string(), object.to_string());
        assert_eq!(with_text(text.clone()), text, "as it was written");
        assert_eq!(with_text(object), message(json!("{\"b\":1,\"a\":2}")));
        assert_eq!(with_objects(message(json!(""))), message(json!({})));
        let (list, bare) = (message(json!("[1]")), json!({"tool_calls": [{"name": "f", "arguments": "{}"}]}));
        assert_eq!(with_objects(list.clone()), list);
        assert_eq!(with_objects(bare)["tool_calls"][0]["arguments"], json!({}));
    }

    #[test]
    fn calls_without_a_name_are_refused() {
        let checked = |message: Value| {
            let mut message = row(message);
            calls(&mut message).map(|()| Value::Object(message))
        };
        let older = checked(json!({"function_call": {"name": "f", "arguments": "{}"}})).unwrap();
        assert_eq!(older["tool_calls"][0]["function"]["name"], "f");
        assert!(checked(json!({"tool_calls": "f"})).unwrap_err().contains("not a list"));
        assert!(checked(json!({"tool_calls": [{"name": "f"}, {"function": {}}]})).unwrap_err().contains("number 2"));
        assert!(calls_of_text(Some(&json!("f(1)"))).unwrap_err().contains("no JSON"));
        let two = calls_of_text(Some(&json!("[{\"name\": \"f\"}, {\"name\": \"g\"}]"))).unwrap();
        assert_eq!(two[1]["function"]["name"], "g");
    }
}
