//! Tools that a chat may call: which there are, which must be called, and how calls look in the answer.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::grammar::{Form, bounded};
use crate::chat::ToolFormat;
use calls::Must;
pub(super) use found::Part;
pub(super) use parser::Parser;

mod calls;
mod found;
mod parser;
mod python;
mod xml;

/// Longest name of a tool; Anthropic's interface has the longest ones.
const NAME: usize = 128;

/// What a request says of tools.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Tools {
    /// Whether the template is told of them.
    pub(super) told: bool,
    /// How calls are read, if the answer is looked through for them.
    pub(super) reading: Option<Reading>,
    /// What the answer must be like behind its opening, if that is not free.
    pub(super) form: Option<Form>,
}

/// A tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tool {
    name: String,
    /// The schema of its arguments, as the request has it.
    parameters: Option<Value>,
    /// Whether its arguments must follow the schema whenever it is called.
    strict: bool,
}

/// How calls are read out of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    format: ToolFormat,
    /// What the answer is made to begin with, so that it is a call.
    pub(super) opening: String,
    /// The tools, whose schemas say what values are of.
    tools: Arc<[Tool]>,
    /// Whether there may be more than one call.
    pub(super) parallel: bool,
}

impl Reading {
    /// A reader of one answer.
    pub(super) fn parser(&self) -> Parser {
        Parser::new(self.format, &self.opening, self.tools.clone())
    }

    /// The text of a special token, if calls begin with it.
    pub(super) fn mark(&self) -> &'static str {
        self.format.mark()
    }

    /// A new call's id. Mistral's templates want nine letters and digits.
    pub(super) fn new_id(&self) -> String {
        let random = format!("{:032x}", rand::random::<u128>());
        match self.format {
            ToolFormat::Mistral => random.chars().take(9).collect(),
            _ => format!("call_{}", &random[..24]),
        }
    }
}

impl Tools {
    /// Takes `tools` and what belongs to them out of a request to a model that writes calls in `format`.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(super) fn take(fields: &mut Fields, format: Option<ToolFormat>) -> Result<Self, ApiError> {
        if fields.take("functions").is_some_and(|functions| functions != Value::Array(Vec::new())) {
            return Err(ApiError::field("functions", "is not supported by this server: send them as `tools`"));
        }
        fields.refuse("function_call", &[Value::from("none"), Value::from("auto")])?;
        let parallel = fields.choice("parallel_tool_calls")?.unwrap_or(true);
        let tools = tools(fields.take("tools"))?;
        let wrong = |message: String| Err(ApiError::field("tool_choice", message));
        let unknown = || wrong("must be none, auto, required, or an object that names a function".to_owned());
        let must = match fields.take("tool_choice") {
            None => None,
            Some(Value::String(word)) => match word.as_str() {
                "auto" => None,
                "none" => return Ok(Self::default()),
                "required" => Some(if parallel { Must::CallSome } else { Must::CallOne }),
                _ => return unknown(),
            },
            Some(choice) => {
                match choice.pointer("/function/name").or_else(|| choice.get("name")).and_then(Value::as_str) {
                    Some(name) => match tools.iter().find(|known| known.name == name) {
                        Some(tool) => Some(Must::Call(tool)),
                        None => return wrong(format!("names {name:?}, which is not among the `tools`")),
                    },
                    None => return unknown(),
                }
            }
        };
        if tools.is_empty() {
            return if must.is_some() { wrong("needs `tools`".to_owned()) } else { Ok(Self::default()) };
        }
        let (opening, form) = match (must, format) {
            (None, Some(format)) if tools.iter().any(|tool| tool.strict) => {
                (String::new(), calls::strict(format, &tools))
            }
            (None, _) => (String::new(), None),
            (Some(must), Some(format)) => {
                let (opening, form) = calls::forced(format, &tools, must);
                (opening, Some(form))
            }
            (Some(_), None) => {
                return wrong(
                    "cannot be met: this model's chat template tells of no format of calls that this server \
                     reads (--tool-format gives one); `auto` and `none` are possible"
                        .to_owned(),
                );
            }
        };
        let tools: Arc<[Tool]> = tools.into();
        let reading = format.map(|format| Reading { format, opening, tools, parallel });
        Ok(Self { told: true, reading, form })
    }
}

/// The tools of a request.
fn tools(tools: Option<Value>) -> Result<Vec<Tool>, ApiError> {
    let list = match tools {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::field("tools", "must be a list of tools")),
    };
    let tool = |(number, tool): (usize, &Value)| {
        let wrong = |field: &str, message: String| Err(ApiError::field(format!("tools[{number}]{field}"), message));
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {}
            Some(kind) => return wrong(".type", format!("is {kind}, this server knows function alone")),
            None => return wrong("", "must be an object with the type function".to_owned()),
        }
        let sane = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        let name = match tool.pointer("/function/name").and_then(Value::as_str) {
            Some(name) if (1..=NAME).contains(&name.len()) && name.chars().all(sane) => name.to_owned(),
            _ => return wrong(".function.name", format!("must be 1 to {NAME} letters, digits, _ and -")),
        };
        let parameters = match tool.pointer("/function/parameters") {
            None | Some(Value::Null) => None,
            Some(schema @ Value::Object(_)) => match bounded(schema) {
                Ok(()) => Some(schema.clone()),
                Err(reason) => return wrong(".function.parameters", reason),
            },
            Some(_) => return wrong(".function.parameters", "must be a JSON schema: an object".to_owned()),
        };
        let strict = match tool.pointer("/function/strict") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(strict)) => *strict,
            Some(_) => return wrong(".function.strict", "must be true or false".to_owned()),
        };
        Ok(Tool { name, parameters, strict })
    };
    list.iter().enumerate().map(tool).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use serde_json::json;

    use super::*;

    fn taken(request: &Value, format: Option<ToolFormat>) -> Result<Tools, String> {
        let mut fields = Fields::parse(&Bytes::from(request.to_string())).map_err(|error| error.json().to_string())?;
        Tools::take(&mut fields, format)
            .map_err(|error| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn who_must_call_begins_with_a_call() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {}}});
        let tools = json!([tool("look"), tool("go")]);
        let hermes = Some(ToolFormat::Hermes);
        let opening = |choice: Value| {
            let tools = taken(&json!({"tools": tools, "tool_choice": choice}), hermes)?;
            Ok::<_, String>(tools.reading.map(|reading| reading.opening))
        };
        assert_eq!(opening(Value::Null), Ok(Some(String::new())));
        assert_eq!(opening(json!("auto")), Ok(Some(String::new())));
        assert_eq!(opening(json!("none")), Ok(None));
        assert_eq!(opening(json!("required")), Ok(Some("<tool_call>\n{\"name\": ".to_owned())));
        let named = json!({"type": "function", "function": {"name": "go"}});
        assert_eq!(opening(named.clone()), Ok(Some("<tool_call>\n{\"name\": \"go\", \"arguments\":".to_owned())));
        assert_eq!(opening(json!({"type": "function", "function": {"name": "fly"}})), Err("tool_choice".to_owned()));
        assert_eq!(opening(json!("perhaps")), Err("tool_choice".to_owned()));
        // Models that know of no tools are only told of them.
        assert_eq!(taken(&json!({"tools": tools}), None), Ok(Tools { told: true, ..Tools::default() }));
        assert_eq!(taken(&json!({"tools": tools, "tool_choice": named}), None), Err("tool_choice".to_owned()));
        assert_eq!(taken(&json!({"tools": []}), hermes), Ok(Tools::default()));
        assert_eq!(taken(&json!({"tool_choice": "required"}), hermes), Err("tool_choice".to_owned()));
    }

    #[test]
    fn a_wrong_tool_is_named() {
        for (tools, field) in [
            (json!("look"), "tools"),
            (json!([3]), "tools[0]"),
            (json!([{"type": "web_search"}]), "tools[0].type"),
            (json!([{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
            (json!([{"type": "function"}]), "tools[0].function.name"),
            (
                json!([{"type": "function", "function": {"name": "a", "parameters": [1]}}]),
                "tools[0].function.parameters",
            ),
            (json!([{"type": "function", "function": {"name": "a", "strict": "yes"}}]), "tools[0].function.strict"),
        ] {
            assert_eq!(taken(&json!({"tools": tools}), None), Err(field.to_owned()), "{tools}");
        }
        assert_eq!(taken(&json!({"functions": [{"name": "a"}]}), None), Err("functions".to_owned()));
    }
}
