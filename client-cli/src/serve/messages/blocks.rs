//! The messages of a request and their blocks, as messages of a chat.

use serde_json::{Value, json};

use super::super::error::ApiError;

/// Most messages of a request.
const MESSAGES: usize = 10_000;
/// What Claude Code writes in front of its instructions for the bills of its maker. It is another one each time, so that nothing of the
/// conversation behind it could be kept on the servers, and models have no use for it.
const BILLING: &str = "x-anthropic-billing-header:";

/// The messages of a chat that say what `system` and `messages` say.
///
/// # Errors
/// 400, naming the message and the block.
pub(super) fn messages(system: Option<Value>, messages: Option<Value>) -> Result<Vec<Value>, ApiError> {
    let mut chat = Chat(Vec::new());
    if let Some(system) = system {
        chat.plain("system", "system", &system)?;
    }
    let list = match messages {
        None => return Err(ApiError::field("messages", "is missing")),
        Some(Value::Array(list)) if (1..=MESSAGES).contains(&list.len()) => list,
        Some(_) => return Err(ApiError::field("messages", format!("must be a list of 1 to {MESSAGES} messages"))),
    };
    for (number, message) in list.iter().enumerate() {
        let name = format!("messages[{number}]");
        let content = message.get("content").unwrap_or(&Value::Null);
        match message.get("role").and_then(Value::as_str) {
            Some("user") => chat.user(&format!("{name}.content"), content)?,
            Some("assistant") => chat.assistant(&format!("{name}.content"), content)?,
            Some("system") => chat.plain("system", &format!("{name}.content"), content)?,
            _ => return Err(ApiError::field(format!("{name}.role"), "must be user, assistant or system")),
        }
    }
    Ok(chat.0)
}

/// The messages of a chat. Those of one speaker that follow each other are one.
struct Chat(Vec<Value>);

impl Chat {
    /// A message that consists of text alone.
    fn plain(&mut self, role: &str, name: &str, content: &Value) -> Result<(), ApiError> {
        for (name, block) in blocks(name, content)? {
            match kind(&block) {
                "text" => match without_bill(text(&name, &block, "text")?) {
                    "" => {}
                    text => self.say(role, text),
                },
                other => return Err(unknown(&name, other, "text")),
            }
        }
        Ok(())
    }

    fn user(&mut self, name: &str, content: &Value) -> Result<(), ApiError> {
        for (name, block) in blocks(name, content)? {
            match kind(&block) {
                "text" => self.say("user", text(&name, &block, "text")?),
                "tool_result" => {
                    let id = text(&name, &block, "tool_use_id")?;
                    let result = result(&name, &block)?;
                    self.0.push(json!({ "role": "tool", "tool_call_id": id, "content": result }));
                }
                other => return Err(unknown(&name, other, "text and tool_result")),
            }
        }
        Ok(())
    }

    fn assistant(&mut self, name: &str, content: &Value) -> Result<(), ApiError> {
        // An answer that said nothing is one all the same.
        self.say("assistant", "");
        for (name, block) in blocks(name, content)? {
            match kind(&block) {
                "text" => self.say("assistant", text(&name, &block, "text")?),
                "tool_use" => {
                    let input = block.get("input").filter(|input| input.is_object());
                    let input =
                        input.ok_or_else(|| ApiError::field(format!("{name}.input"), "must be an object"))?.clone();
                    let function = json!({ "name": text(&name, &block, "name")?, "arguments": input });
                    let call = json!({ "id": text(&name, &block, "id")?, "type": "function", "function": function });
                    self.add(call);
                }
                // This model's own thoughts are part of its text.
                "thinking" | "redacted_thinking" => {}
                other => return Err(unknown(&name, other, "text, tool_use and thinking")),
            }
        }
        Ok(())
    }

    fn last(&mut self, role: &str) -> Option<&mut Value> {
        self.0.last_mut().filter(|last| last["role"] == role)
    }

    /// Adds text, to the message before if it is of the same speaker. The parts of a message become lines.
    fn say(&mut self, role: &str, text: &str) {
        match self.last(role) {
            Some(last) => {
                let before = last["content"].as_str().unwrap_or_default();
                let gap = if before.is_empty() || text.is_empty() { "" } else { "\n" };
                last["content"] = format!("{before}{gap}{text}").into();
            }
            None => self.0.push(json!({ "role": role, "content": text })),
        }
    }

    /// Adds a call to the assistant's message.
    fn add(&mut self, call: Value) {
        let Some(last) = self.last("assistant") else { return };
        match last.get_mut("tool_calls") {
            Some(Value::Array(calls)) => calls.push(call),
            _ => last["tool_calls"] = json!([call]),
        }
    }
}

/// The blocks of a content with their names. A text is one block.
fn blocks(name: &str, content: &Value) -> Result<Vec<(String, Value)>, ApiError> {
    match content {
        Value::String(text) => Ok(vec![(name.to_owned(), json!({ "type": "text", "text": text }))]),
        Value::Array(list) => {
            Ok(list.iter().enumerate().map(|(at, block)| (format!("{name}[{at}]"), block.clone())).collect())
        }
        _ => Err(ApiError::field(name, "must be a text or a list of blocks")),
    }
}

/// What a tool returned, as text. That it failed is said, since chats have no other place for it.
fn result(name: &str, block: &Value) -> Result<String, ApiError> {
    let name = format!("{name}.content");
    let mut lines = Vec::new();
    for (name, part) in blocks(&name, block.get("content").filter(|content| !content.is_null()).unwrap_or(&json!([])))?
    {
        match kind(&part) {
            "text" => lines.push(text(&name, &part, "text")?.to_owned()),
            other => return Err(unknown(&name, other, "text")),
        }
    }
    let result = lines.join("\n");
    let failed = block.get("is_error") == Some(&Value::Bool(true));
    let says_so = result.trim_start().get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case("error"));
    Ok(if failed && !says_so { format!("Error: {result}") } else { result })
}

fn kind(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn text<'a>(name: &str, block: &'a Value, field: &str) -> Result<&'a str, ApiError> {
    let text = block.get(field).and_then(Value::as_str);
    text.ok_or_else(|| ApiError::field(format!("{name}.{field}"), "must be a text"))
}

fn unknown(name: &str, kind: &str, known: &str) -> ApiError {
    if kind.is_empty() {
        return ApiError::field(name, "must be an object with a type");
    }
    ApiError::field(format!("{name}.type"), format!("is {kind}: this model reads text alone, and here {known}"))
}

/// A text without the line for bills at its beginning.
fn without_bill(text: &str) -> &str {
    if !text.starts_with(BILLING) {
        return text;
    }
    text.split_once('\n').map_or("", |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(system: Value, list: Value) -> Result<Value, String> {
        let system = Some(system).filter(|system| !system.is_null());
        let param = |error: ApiError| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        messages(system, Some(list)).map(Value::from).map_err(param)
    }

    #[test]
    fn blocks_become_messages_and_results_messages_of_their_own() {
        let marked = json!({"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}});
        let system = json!([{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, {"type": "text", "text": "a"}, marked]);
        let list = json!([
            {"role": "user", "content": "look"},
            {"role": "user", "content": [{"type": "text", "text": "there"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"z": 1, "a": 2}},
                {"type": "tool_use", "id": "t2", "name": "go", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "in"}, {"type": "text", "text": "the yard"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no way", "is_error": true},
                {"type": "text", "text": "so?"},
            ]},
            {"role": "system", "content": "be brief"},
            {"role": "assistant", "content": ""},
        ]);
        let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let calls = json!([call("t1", "look", json!({"z": 1, "a": 2})), call("t2", "go", json!({}))]);
        let expected = json!([
            {"role": "system", "content": "a\nb"},
            {"role": "user", "content": "look\nthere"},
            {"role": "assistant", "content": "well", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "t1", "content": "in\nthe yard"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: no way"},
            {"role": "user", "content": "so?"},
            {"role": "system", "content": "be brief"},
            {"role": "assistant", "content": ""},
        ]);
        assert_eq!(said(system, list), Ok(expected));
        let bill = json!("x-anthropic-billing-header: cch=2;\nbe kind");
        let kind = json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "x"}]);
        assert_eq!(said(bill, json!([{"role": "user", "content": "x"}])), Ok(kind));
    }

    #[test]
    fn a_wrong_block_is_named() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}});
        let content = |role: &str, content: Value| json!([{"role": role, "content": content}]);
        for (list, param) in [
            (json!("x"), "messages"),
            (json!([]), "messages"),
            (json!([3]), "messages[0].role"),
            (content("tool", json!("x")), "messages[0].role"),
            (content("user", json!(3)), "messages[0].content"),
            (content("user", json!([image])), "messages[0].content[0].type"),
            (content("user", json!([{"type": "document"}])), "messages[0].content[0].type"),
            (content("user", json!(["x"])), "messages[0].content[0]"),
            (content("user", json!([{"type": "text"}])), "messages[0].content[0].text"),
            (content("user", json!([{"type": "tool_result", "content": "x"}])), "messages[0].content[0].tool_use_id"),
            (
                content("user", json!([{"type": "tool_result", "tool_use_id": "t", "content": [image]}])),
                "messages[0].content[0].content[0].type",
            ),
            (
                content("assistant", json!([{"type": "tool_use", "id": "t", "name": "f"}])),
                "messages[0].content[0].input",
            ),
            (content("assistant", json!([{"type": "server_tool_use"}])), "messages[0].content[0].type"),
        ] {
            assert_eq!(said(Value::Null, list.clone()), Err(param.to_owned()), "{list}");
        }
        assert_eq!(said(json!([image]), content("user", json!("x"))), Err("system[0].type".to_owned()));
        assert!(messages(None, None).is_err());
    }
}
