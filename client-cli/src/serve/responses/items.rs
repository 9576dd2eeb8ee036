//! The items of a request's `input`, as messages of a chat.

use serde_json::{Value, json};

use super::super::conversation::texts;
use super::super::error::ApiError;
use super::super::kept::Kept;

/// Most items of a request.
const ITEMS: usize = 10_000;

/// The items of `input`, with those that it refers to in their places.
///
/// # Errors
/// 400, naming the item.
pub(super) fn items(input: Option<Value>, kept: &Kept) -> Result<Vec<Value>, ApiError> {
    let list = match input {
        None => return Err(ApiError::field("input", "is missing")),
        Some(Value::String(text)) => return Ok(vec![json!({ "type": "message", "role": "user", "content": text })]),
        Some(Value::Array(list)) if list.len() <= ITEMS => list,
        Some(_) => return Err(ApiError::field("input", format!("must be a text or a list of at most {ITEMS} items"))),
    };
    let known = |(number, item): (usize, Value)| {
        // The type of a reference may be left out, as that of a message.
        let bare = item.get("type").is_none() && item.get("role").is_none() && item.get("id").is_some();
        if kind(&item) != "item_reference" && !bare {
            return Ok(item);
        }
        let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
        kept.item(id).ok_or_else(|| {
            let message = format!("refers to {id:?}, which is not kept here (any more): send the item itself");
            ApiError::field(format!("input[{number}]"), message)
        })
    };
    list.into_iter().enumerate().map(known).collect()
}

/// The messages of a chat that say what the items say. Calls belong to the assistant's message in front of them.
///
/// # Errors
/// 400, naming the item, which is the `first`-th one or behind it if it came with this request.
pub(super) fn messages(items: &[Value], first: usize) -> Result<Vec<Value>, ApiError> {
    let mut messages = Vec::new();
    for (number, item) in items.iter().enumerate() {
        // What was kept was right when it came.
        let name = |field: &str| format!("input[{}]{field}", number.saturating_sub(first));
        let wrong = |field: &str, message: String| Err(ApiError::field(name(field), message));
        let text = |field: &str| {
            let text = item.get(field).and_then(Value::as_str);
            text.ok_or_else(|| ApiError::field(name(&format!(".{field}")), "must be a text"))
        };
        match kind(item) {
            "message" => {
                let role = item.get("role").and_then(Value::as_str);
                let Some(role @ ("user" | "assistant" | "system" | "developer")) = role else {
                    return wrong(".role", "must be user, assistant, system or developer".to_owned());
                };
                let content = match content(item.get("content")) {
                    Ok(text) => text,
                    Err(reason) => return wrong(".content", reason),
                };
                messages.push(json!({ "role": role, "content": content }));
            }
            "function_call" => {
                let function = json!({ "name": text("name")?, "arguments": text("arguments")? });
                let call = json!({ "id": text("call_id")?, "type": "function", "function": function });
                add_call(&mut messages, call);
            }
            "function_call_output" => {
                let content = match content(item.get("output")) {
                    Ok(text) => text,
                    Err(reason) => return wrong(".output", reason),
                };
                messages.push(json!({ "role": "tool", "tool_call_id": text("call_id")?, "content": content }));
            }
            // What another model thought; this one's thoughts are part of its text.
            "reasoning" => {}
            "" => return wrong("", "must be an object with a type".to_owned()),
            other => {
                let message = format!(
                    "is {other}, this server knows message, function_call, function_call_output, reasoning and item_reference"
                );
                return wrong(".type", message);
            }
        }
    }
    Ok(messages)
}

/// The type of an item. Messages may go without.
fn kind(item: &Value) -> &str {
    match item.get("type") {
        None | Some(Value::Null) if item.get("role").is_some() => "message",
        kind => kind.and_then(Value::as_str).unwrap_or_default(),
    }
}

/// A text, or the texts of a list of parts.
fn content(value: Option<&Value>) -> Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => texts(parts),
        _ => Err("must be a text or a list of parts".to_owned()),
    }
}

fn add_call(messages: &mut Vec<Value>, call: Value) {
    let last = messages.last_mut().and_then(Value::as_object_mut);
    match last.filter(|last| last.get("role").and_then(Value::as_str) == Some("assistant")) {
        Some(last) => match last.entry("tool_calls").or_insert_with(|| json!([])) {
            Value::Array(calls) => calls.push(call),
            other => *other = json!([call]),
        },
        None => messages.push(json!({ "role": "assistant", "content": null, "tool_calls": [call] })),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kept::Entry;
    use super::*;

    fn said(input: Value) -> Result<Value, String> {
        let param = |error: ApiError| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        let items = items(Some(input), &Kept::default()).map_err(param)?;
        messages(&items, 0).map(Value::from).map_err(param)
    }

    #[test]
    fn items_become_messages_with_calls_where_they_belong() {
        assert_eq!(said(json!("the cat")), Ok(json!([{"role": "user", "content": "the cat"}])));
        let call = |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "look", "arguments": "{\"z\": 1}", "status": "completed"});
        let input = json!([
            {"role": "developer", "content": "s"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "well", "annotations": []}]},
            call("c1"), call("c2"),
            {"type": "function_call_output", "call_id": "c1", "output": "in the yard"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "nowhere"}]},
            call("c3"),
        ]);
        let called =
            |id: &str| json!({"id": id, "type": "function", "function": {"name": "look", "arguments": "{\"z\": 1}"}});
        let expected = json!([
            {"role": "developer", "content": "s"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "well", "tool_calls": [called("c1"), called("c2")]},
            {"role": "tool", "tool_call_id": "c1", "content": "in the yard"},
            {"role": "tool", "tool_call_id": "c2", "content": "nowhere"},
            {"role": "assistant", "content": null, "tool_calls": [called("c3")]},
        ]);
        assert_eq!(said(input), Ok(expected));
    }

    #[test]
    fn a_wrong_item_is_named() {
        let user = json!({"role": "user", "content": "x"});
        for (item, param) in [
            (json!(3), "input[1]"),
            (json!({"type": "message", "role": "robot", "content": "x"}), "input[1].role"),
            (json!({"role": "user"}), "input[1].content"),
            (json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}), "input[1].content"),
            (json!({"type": "function_call", "name": "f", "arguments": "{}"}), "input[1].call_id"),
            (json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}), "input[1].arguments"),
            (json!({"type": "function_call_output", "call_id": "c"}), "input[1].output"),
            (
                json!({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}),
                "input[1].output",
            ),
            (json!({"type": "computer_call", "id": "x"}), "input[1].type"),
            (json!({"type": "item_reference", "id": "msg_x"}), "input[1]"),
        ] {
            assert_eq!(said(json!([user, item])), Err(param.to_owned()), "{item}");
        }
        assert_eq!(said(json!({"role": "user"})), Err("input".to_owned()));
        assert!(items(None, &Kept::default()).is_err());
        // Behind two items that were kept.
        let error = messages(&[user.clone(), user, json!({"type": "x"})], 2).unwrap_err();
        assert_eq!(error.json()["error"]["param"], "input[0].type");
    }

    #[test]
    fn an_item_that_is_kept_may_be_referred_to() {
        let kept = Kept::default();
        let item = json!({"type": "message", "id": "msg_1", "role": "assistant", "content": "well"});
        kept.put(Entry { id: "resp_1".to_owned(), response: json!({}), items: vec![item.clone()] });
        let input = json!([{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}]);
        assert_eq!(items(Some(input), &kept).unwrap(), [item.clone(), item]);
    }
}
