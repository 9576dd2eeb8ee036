//! Conversations as lists of messages, from the forms in which data sets have them.
//!
//! | column | a message |
//! |---|---|
//! | `messages` | `{"role": …, "content": …}`, as chat templates take them |
//! | `conversations` | `{"from": "human", "value": …}`, as ShareGPT has them; the other form too |
//!
//! A column `system` beside them comes first; `tools` has what beside them is for the template. Everything else in a message is handed to
//! the template as it is, but what is null: data sets have that for what is not there, and TRL leaves it out too.

use serde_json::{Map, Value, json};

use super::columns::Fields;
use super::problem::Problem;
use super::tools;
use crate::chat::{AnswerError, Answered, ChatTemplate, Told};

/// A conversation, and which of its messages are to be learnt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conversation {
    /// Objects with `role` and `content`, and calls with their arguments as objects.
    pub(super) messages: Vec<Value>,
    /// For each message whether it is learnt: the assistant's, unless they are part of a prompt or have the weight 0.
    pub(super) learnt: Vec<bool>,
    /// The messages with the arguments of calls as the data has them, if there are any calls.
    with_calls: Option<Vec<Value>>,
    /// A list of tools.
    tools: Option<Value>,
    /// Variables of the template's own.
    variables: Map<String, Value>,
}

/// Names of roles in ShareGPT's form, and what they are.
const FROM: [(&str, &str); 12] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    (CALL, "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
];
/// Who says a call of a tool in ShareGPT's form.
const CALL: &str = "function_call";

impl Conversation {
    /// The conversation in a column of a row, with what is beside it.
    pub(super) fn of(column: &str, fields: &Fields) -> Result<Self, Problem> {
        let messages = messages(column, fields.get(column).unwrap_or(&Value::Null))?;
        let has_system = messages.first().is_some_and(|message| message["role"] == "system");
        let mut conversation = Self::new(messages, |_| true);
        match fields.get("system") {
            Some(Value::String(system)) if !has_system && !system.trim().is_empty() => {
                conversation.messages.insert(0, json!({"role": "system", "content": system}));
                conversation.learnt.insert(0, false);
            }
            _ => {}
        }
        conversation.with_row(fields)
    }

    /// A prompt and its completion, both lists of messages in these columns. What the assistant said in the prompt is not learnt.
    pub(super) fn of_completion(columns: (&str, &str), fields: &Fields) -> Result<Self, Problem> {
        let of = |column: &str| messages(column, fields.get(column).unwrap_or(&Value::Null));
        let (mut all, answer) = (of(columns.0)?, of(columns.1)?);
        let asked = all.len();
        all.extend(answer);
        Self::new(all, |at| at >= asked).with_row(fields)
    }

    /// A question and its answer.
    pub(super) fn of_question(question: String, answer: String) -> Self {
        let messages = [("user", question), ("assistant", answer)];
        Self::new(messages.map(|(role, content)| json!({"role": role, "content": content})).into(), |_| true)
    }

    /// `may`: whether the assistant's message at a place may be learnt.
    fn new(messages: Vec<Value>, may: impl Fn(usize) -> bool) -> Self {
        let learnt = messages.iter().enumerate().map(|(at, message)| may(at) && is_learnt(message)).collect();
        Self { messages, learnt, with_calls: None, tools: None, variables: Map::new() }
    }

    /// With the tools and variables of its row.
    fn with_row(mut self, fields: &Fields) -> Result<Self, Problem> {
        self.tools = tools::of_row(fields)?;
        self.variables = tools::variables(fields)?;
        if self.messages.iter().any(|message| message.get("tool_calls").is_some()) {
            let given = self.messages;
            self.messages = given.iter().cloned().map(tools::with_objects).collect();
            self.with_calls = Some(given);
        }
        Ok(self)
    }

    /// Whether nothing is said in it.
    pub(super) fn is_empty(&self) -> bool {
        let says = |message: &Value| match &message["content"] {
            Value::String(text) => !text.trim().is_empty(),
            Value::Null => message.get("tool_calls").is_some(),
            _ => true,
        };
        !self.messages.iter().any(says)
    }

    /// Its text with the answers that are to be learnt.
    ///
    /// Arguments of calls are objects to most templates; those that ask which they are get what the data has, and those that fail on
    /// objects get texts.
    pub(super) fn rendered(&self, template: &ChatTemplate) -> Result<Vec<Answered>, AnswerError> {
        let (tools, variables) = (self.tools.as_ref(), &self.variables);
        let render = |messages: &[Value]| template.with_answers(Told { messages, tools, variables }, &self.learnt);
        match &self.with_calls {
            None => render(&self.messages),
            Some(given) if template.source().contains("arguments is ") => render(given),
            Some(given) => render(&self.messages).or_else(|error| {
                let texts: Vec<Value> = given.iter().cloned().map(tools::with_text).collect();
                render(&texts).map_err(|_| error)
            }),
        }
    }
}

fn is_learnt(message: &Value) -> bool {
    message["role"] == "assistant" && message.get("weight").and_then(Value::as_f64) != Some(0.0)
}

fn messages(column: &str, value: &Value) -> Result<Vec<Value>, Problem> {
    let wrong = |problem: String| Problem::Messages { column: column.to_owned(), problem };
    let list = match value {
        Value::Array(list) => list,
        Value::Null => return Ok(Vec::new()),
        _ => return Err(wrong("expected a list of messages".to_owned())),
    };
    let one = |(at, item): (usize, &Value)| {
        let fields = item.as_object().ok_or_else(|| wrong(format!("message {} is not an object", at + 1)))?;
        message(fields).map_err(|problem| wrong(format!("message {} {problem}", at + 1)))
    };
    list.iter().enumerate().map(one).collect()
}

/// A message in the form of chat templates.
fn message(fields: &Map<String, Value>) -> Result<Value, String> {
    let mut message = tools::without_nulls(fields);
    match message.get("role") {
        None => from_share_gpt(&mut message)?,
        // The name that results of tools had before.
        Some(role) if role == "function" => {
            message.insert("role".to_owned(), "tool".into());
        }
        Some(Value::String(_)) => {}
        Some(_) => return Err("has a `role` that is not a text".to_owned()),
    }
    tools::calls(&mut message)?;
    let content = match message.get("content") {
        None if message.contains_key("tool_calls") => return Ok(Value::Object(message)),
        None => return Err("has no `content`".to_owned()),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => joined(parts)?,
        Some(_) => return Err("has a `content` that is not a text".to_owned()),
    };
    message.insert("content".to_owned(), content.into());
    Ok(Value::Object(message))
}

/// Gives `from` and `value` their names in chat templates.
fn from_share_gpt(message: &mut Map<String, Value>) -> Result<(), String> {
    let from = message.remove("from").unwrap_or_default();
    let from = from.as_str().ok_or("has neither `role` nor `from`")?;
    let role = FROM.iter().find(|(name, _)| name.eq_ignore_ascii_case(from)).map(|(_, role)| *role);
    let role = role.ok_or_else(|| format!("is from \"{from}\": expected human, gpt, system, tool or {CALL}"))?;
    let value = message.remove("value");
    message.insert("role".to_owned(), role.into());
    if from.eq_ignore_ascii_case(CALL) {
        message.insert("tool_calls".to_owned(), tools::calls_of_text(value.as_ref())?);
    } else if let Some(value) = value {
        message.insert("content".to_owned(), value);
    }
    Ok(())
}

/// Parts of a content, as data for models that also see pictures have them, as one text.
fn joined(parts: &[Value]) -> Result<String, String> {
    let text = |part: &Value| match part {
        Value::String(text) => Ok(text.clone()),
        _ => part.get("text").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
            format!("has a part of type \"{kind}\": only texts can be used")
        }),
    };
    Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(row: Value) -> Result<Conversation, String> {
        let fields = row.as_object().unwrap();
        let column = fields.keys().find(|key| !["system", "tools"].contains(&key.as_str())).unwrap();
        Conversation::of(column, fields).map_err(|problem| problem.to_string())
    }

    #[test]
    fn share_gpt_becomes_what_templates_take() {
        let talk = json!([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]);
        let got = of(json!({"conversations": talk, "system": "Be kind."})).unwrap();
        let same = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                          {"role": "assistant", "content": "Ho"}]);
        assert_eq!(json!(got.messages), same);
        assert_eq!(got.learnt, [false, false, true]);
        assert_eq!(
            of(json!({"messages": same, "system": "Be rude."})).unwrap(),
            got,
            "the conversation's own one counts"
        );
    }

    #[test]
    fn only_the_assistant_is_learnt_and_of_a_prompt_nothing() {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let prompt = json!([message("user", "a"), message("assistant", "b"), message("user", "c")]);
        let row = json!({"prompt": prompt, "completion": [message("assistant", "d")]});
        let got = Conversation::of_completion(("prompt", "completion"), row.as_object().unwrap());
        assert_eq!(got.unwrap().learnt, [false, false, false, true]);
        let skipped = json!({"role": "assistant", "content": "b", "weight": 0});
        let got = of(json!({"messages": [skipped, message("assistant", "c")]})).unwrap();
        assert_eq!(got.learnt, [false, true]);
    }

    #[test]
    fn contents_in_parts_are_joined_and_pictures_are_refused() {
        let parts = |parts: Value| of(json!({"messages": [{"role": "user", "content": parts}]}));
        let got = parts(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])).unwrap();
        assert_eq!(got.messages[0]["content"], "a\nb");
        assert!(parts(json!([{"type": "image", "url": "x"}])).unwrap_err().contains("\"image\""));
    }

    #[test]
    fn what_is_no_conversation_is_refused_by_its_message() {
        let refused = |row: Value| of(row).unwrap_err();
        assert!(refused(json!({"messages": "Hi"})).contains("expected a list"));
        assert!(refused(json!({"messages": ["Hi"]})).contains("message 1 is not an object"));
        assert!(refused(json!({"messages": [{"content": "Hi"}]})).contains("message 1 has neither `role` nor `from`"));
        assert!(refused(json!({"messages": [{"role": "user"}]})).contains("has no `content`"));
        assert!(refused(json!({"messages": [{"role": "user", "content": 3}]})).contains("not a text"));
        assert!(refused(json!({"conversations": [{"from": "alien", "value": "x"}]})).contains("\"alien\""));
        assert!(refused(json!({"messages": [], "tools": {"type": "function"}})).contains("`tools`"));
        let calls = json!({"role": "assistant", "content": null, "tool_calls": []});
        assert!(of(json!({"messages": [calls]})).is_ok());
        assert!(of(json!({"messages": []})).unwrap().is_empty());
    }
}
