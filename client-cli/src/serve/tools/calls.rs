//! Calls of tools as grammars: arguments follow the schemas of their tools.

use serde_json::{Map, Value, json};

use super::Tool;
use crate::chat::ToolFormat;
use crate::serve::grammar::{Form, Rule, completed, quoted};

/// Longest text that a parameter can be bound to; more are not bound.
const LENGTH: u64 = 10_000;

/// Which calls must be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Must<'a> {
    /// One of this tool.
    Call(&'a Tool),
    /// One of any tool, or several.
    CallSome,
    /// One of any tool, and no more.
    CallOne,
}

/// What an answer begins with that must call tools, and what follows.
pub(super) fn forced(format: ToolFormat, tools: &[Tool], must: Must<'_>) -> (String, Form) {
    let only = match (must, tools) {
        (Must::Call(tool), _) => Some(tool),
        (Must::CallOne | Must::CallSome, [tool]) => Some(tool),
        _ => None,
    };
    let mut opening = format.opening().to_owned();
    let mut lark = Lark::default();
    let first = match only {
        // What is known of the call needs no generating.
        Some(tool) => {
            opening += &format.name(&tool.name);
            lark.behind_name(format, tool)
        }
        None => lark.call(format, tools),
    };
    let (next, end) = (quoted(format.next()), format.end());
    let end = if end.is_empty() { String::new() } else { quoted(end) };
    let more = if must == Must::CallSome { format!("({next} {})*", lark.call(format, tools)) } else { String::new() };
    (opening, lark.form(&format!("{first} {more} {end}")))
}

/// An answer that may have calls among its text: they are of these tools, and their arguments follow the schemas.
pub(super) fn strict(format: ToolFormat, tools: &[Tool]) -> Option<Form> {
    let mark = format.mark();
    let begun = format.opening().strip_prefix(mark).filter(|_| format.is_marked())?;
    let mut lark = Lark::default();
    let call = lark.call(format, tools);
    let (next, end) = (format.next(), format.end());
    let rest = match next.trim_start().strip_prefix(mark) {
        // The next call is found in the text as the first one is.
        Some(_) => String::new(),
        None => format!("({} {call})*", quoted(next)),
    };
    let end = if end.is_empty() { String::new() } else { quoted(end) };
    lark.rule("TEXT: /(?s:.*)/");
    lark.rule(&format!("before[lazy]: TEXT {}", quoted(mark)));
    Some(lark.form(&format!("(before {} {call} {rest} {end})* last\nlast: TEXT", quoted(begun))))
}

/// Rules under way.
#[derive(Debug, Default)]
struct Lark {
    rules: String,
    /// The rule of any call, once there is one.
    call: Option<String>,
    count: usize,
}

impl Lark {
    fn rule(&mut self, rule: &str) {
        self.rules += rule;
        self.rules.push('\n');
    }

    fn named(&mut self, body: &str) -> String {
        let name = format!("r{}", self.count);
        self.count += 1;
        self.rule(&format!("{name}: {body}"));
        name
    }

    fn form(self, start: &str) -> Form {
        Form { field: "tools".to_owned(), rule: Rule::Lark(format!("start: {start}\n{}", self.rules)) }
    }

    /// Any call, from its tool's name on.
    fn call(&mut self, format: ToolFormat, tools: &[Tool]) -> String {
        if let Some(call) = &self.call {
            return call.clone();
        }
        let one = |lark: &mut Self, tool: &Tool| {
            let rest = lark.behind_name(format, tool);
            format!("{} {rest}", quoted(&format.name(&tool.name)))
        };
        let calls: Vec<String> = tools.iter().map(|tool| one(self, tool)).collect();
        let call = self.named(&calls.join(" | "));
        self.call = Some(call.clone());
        call
    }

    /// A call behind its tool's name.
    fn behind_name(&mut self, format: ToolFormat, tool: &Tool) -> String {
        let close = quoted(format.close());
        if format == ToolFormat::Pythonic {
            // Its values are no JSON.
            return self.named(&format!("/(?s:[^()]*)/ {close}"));
        }
        if format == ToolFormat::QwenXml {
            let parameters = self.parameters(tool);
            return self.named(&format!("\"\\n\" {parameters} {close}"));
        }
        let schema = self.json(tool.schema(), tool.strict);
        self.named(&format!("\" \"? {schema} {close}"))
    }

    fn json(&mut self, schema: Value, strict: bool) -> String {
        let mut schema = completed(schema);
        // Nobody promised more than to keep to what can be said.
        if let (false, Some(Value::Object(options))) = (strict, schema.get_mut("x-guidance")) {
            options.entry("lenient").or_insert(Value::Bool(true));
        }
        self.named(&format!("%json {schema}"))
    }

    /// Parameters between marks, in the schema's order, texts as they are and all else as JSON.
    fn parameters(&mut self, tool: &Tool) -> String {
        let schema = tool.schema();
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut all = Vec::new();
        for (name, property) in properties {
            let value = self.value(&schema, property, tool.strict);
            let parameter = format!("{} {value}", quoted(&format!("<parameter={name}>\n")));
            let must = required.iter().any(|known| known.as_str() == Some(name));
            all.push(format!("({parameter}){}", if must { "" } else { "?" }));
        }
        self.named(if all.is_empty() { "\"\"".to_owned() } else { all.join(" ") }.as_str())
    }

    /// A parameter's value and the mark behind it.
    fn value(&mut self, whole: &Value, property: &Value, strict: bool) -> String {
        let close = "\n</parameter>\n";
        let texts = property.get("enum").and_then(Value::as_array);
        let texts: Option<Vec<&str>> = texts.and_then(|list| list.iter().map(Value::as_str).collect());
        match (texts, property.get("type").and_then(Value::as_str)) {
            (Some(texts), _) if !texts.is_empty() => {
                let texts: Vec<String> = texts.into_iter().map(quoted).collect();
                format!("({}) {}", texts.join(" | "), quoted(close))
            }
            // What has no type is read as a text.
            (_, Some("string") | None) => {
                let name = format!("r{}", self.count);
                self.count += 1;
                let length = |name: &str| property.get(name).and_then(Value::as_u64).filter(|&length| length <= LENGTH);
                let (least, most) = (length("minLength").unwrap_or(0), length("maxLength"));
                let most = most.map(|most| most.max(least).to_string()).unwrap_or_default();
                self.rule(&format!("{name}[lazy]: /(?s:.{{{least},{most}}})/ {}", quoted(close)));
                name
            }
            _ => {
                let mut own = property.clone();
                for definitions in ["$defs", "definitions"] {
                    if let (Some(all), Value::Object(own)) = (whole.get(definitions), &mut own) {
                        own.entry(definitions).or_insert_with(|| all.clone());
                    }
                }
                format!("{} {}", self.json(own, strict), quoted(close))
            }
        }
    }
}

impl Tool {
    /// The schema of its arguments: an object in any case.
    fn schema(&self) -> Value {
        match &self.parameters {
            Some(Value::Object(schema)) => {
                let mut schema = schema.clone();
                if !["type", "$ref", "anyOf", "allOf", "oneOf"].iter().any(|keyword| schema.contains_key(*keyword)) {
                    schema.insert("type".to_owned(), "object".into());
                }
                Value::Object(schema)
            }
            _ => json!({ "type": "object" }),
        }
    }
}
