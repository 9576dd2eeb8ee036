//! What a request binds its answers to.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::gbnf;
use super::grammar::{Form, Rule};

/// Most texts of which an answer must be one.
const CHOICES: usize = 1000;
/// Most bytes of a grammar, and lines, which have a rule at most: what is wrong at the end of a chain of rules is told at each of them.
const GRAMMAR: (usize, usize) = (64 << 10, 1000);

/// Takes the form of the answers out of a request, in the words of OpenAI, vLLM and llama.cpp.
///
/// # Errors
/// 400, naming the field: it is wrong, or there is more than one form.
pub(super) fn take(fields: &mut Fields) -> Result<Option<Form>, ApiError> {
    let space = fields.text("guided_whitespace_pattern")?;
    // Which library makes answers follow their form makes no difference to them.
    fields.text("guided_decoding_backend")?;
    let mut found = Vec::new();
    found.extend(response_format(fields.take("response_format"))?);
    for (name, kind) in [
        ("guided_json", Kind::Json),
        ("guided_regex", Kind::Regex),
        ("guided_choice", Kind::Choice),
        ("guided_grammar", Kind::Grammar),
        ("json_schema", Kind::Json),
        ("grammar", Kind::Grammar),
    ] {
        if let Some(value) = fields.take(name) {
            found.push(kind.form(name, value)?);
        }
    }
    found.extend(structured_outputs(fields.take("structured_outputs"))?);
    if let [first, second, ..] = found.as_slice() {
        let message = format!("cannot be met together with `{}`: leave one of them out", first.field);
        return Err(ApiError::field(&second.field, message));
    }
    let mut form = found.pop();
    if let Some(space) = space {
        match &mut form {
            Some(Form { rule: Rule::Json(schema), .. }) => option(schema, "whitespace_pattern", Value::from(space)),
            _ => return Err(ApiError::field("guided_whitespace_pattern", "needs a form of JSON beside it")),
        }
    }
    Ok(form)
}

/// A way to say what an answer is to be like.
#[derive(Clone, Copy)]
enum Kind {
    Json,
    Regex,
    Choice,
    Grammar,
    Object,
}

impl Kind {
    /// The form that the field `name` asks for.
    fn form(self, name: &str, value: Value) -> Result<Form, ApiError> {
        let wrong = |message: &str| ApiError::field(name, message);
        let rule = match (self, value) {
            (Self::Json, value @ (Value::Object(_) | Value::Bool(_))) => Rule::Json(value),
            (Self::Json, Value::String(text)) => match serde_json::from_str(&text) {
                Ok(value @ (Value::Object(_) | Value::Bool(_))) => Rule::Json(value),
                Ok(_) => return Err(wrong("must be a JSON schema: an object, or the text of one")),
                Err(error) => {
                    return Err(wrong(&format!("must be a JSON schema, and is a text that is no JSON: {error}")));
                }
            },
            (Self::Json, _) => return Err(wrong("must be a JSON schema: an object, or the text of one")),
            (Self::Object, _) => Rule::Json(json!({ "type": "object" })),
            (Self::Regex, Value::String(text)) if !text.is_empty() => Rule::Regex(text),
            (Self::Regex, _) => return Err(wrong("must be a regular expression")),
            (Self::Grammar, Value::String(text)) if text.len() <= GRAMMAR.0 && !text.trim().is_empty() => {
                let lark = if gbnf::is_gbnf(&text) {
                    gbnf::to_lark(&text).map_err(|error| wrong(&format!("cannot be read as GBNF: {error}")))?
                } else {
                    text
                };
                if lark.lines().count() > GRAMMAR.1 {
                    return Err(wrong(&format!("has more than {} lines: make it simpler", GRAMMAR.1)));
                }
                Rule::Lark(lark)
            }
            (Self::Grammar, _) => {
                let message = format!(
                    "must be a grammar of at most {} bytes, in Lark's or llama.cpp's (GBNF) notation",
                    GRAMMAR.0
                );
                return Err(wrong(&message));
            }
            (Self::Choice, value) => {
                let text = |text: &Value| text.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                let texts: Option<Vec<String>> = value.as_array().and_then(|list| list.iter().map(text).collect());
                match texts {
                    Some(texts) if (1..=CHOICES).contains(&texts.len()) => return Ok(Form::choice(name, &texts)),
                    _ => return Err(wrong(&format!("must be a list of 1 to {CHOICES} texts that are not empty"))),
                }
            }
        };
        Ok(Form { field: name.to_owned(), rule })
    }
}

/// OpenAI's way.
fn response_format(value: Option<Value>) -> Result<Option<Form>, ApiError> {
    let Some(mut format) = value else { return Ok(None) };
    let schema = |value: Option<&mut Value>| value.map(Value::take).filter(|value| !value.is_null());
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        // With a schema, llama.cpp and others take this to be the other one.
        Some("json_object") => match schema(format.get_mut("schema")) {
            Some(schema) => Kind::Json.form("response_format.schema", schema).map(Some),
            None => Kind::Object.form("response_format", Value::Null).map(Some),
        },
        Some("json_schema") => {
            let name = "response_format.json_schema";
            match format.get_mut("json_schema") {
                Some(Value::Object(named)) => match schema(named.get_mut("schema")) {
                    Some(schema) => Kind::Json.form(&format!("{name}.schema"), schema).map(Some),
                    None => Err(ApiError::field(format!("{name}.schema"), "is missing")),
                },
                _ => Err(ApiError::field(name, "must be an object with a `schema`")),
            }
        }
        Some(kind) => {
            let message = format!("of type {kind} is not supported: text, json_object and json_schema are");
            Err(ApiError::field("response_format", message))
        }
        None => Err(ApiError::field("response_format", "must be an object with a `type`")),
    }
}

/// vLLM's newer way.
fn structured_outputs(value: Option<Value>) -> Result<Option<Form>, ApiError> {
    let name = "structured_outputs";
    let mut given: Map<String, Value> = match value {
        None => return Ok(None),
        Some(Value::Object(given)) => given,
        Some(_) => return Err(ApiError::field(name, "must be an object")),
    };
    given.retain(|_, value| !value.is_null());
    let mut flag = |field: &str| match given.remove(field) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(ApiError::field(format!("{name}.{field}"), "must be true or false")),
    };
    let (object, tight) = (flag("json_object")?, flag("disable_any_whitespace")?);
    // There is no other library to fall back to.
    flag("disable_fallback")?;
    if flag("disable_additional_properties")? {
        let message = "is not supported: say `\"additionalProperties\": false` in the schema";
        return Err(ApiError::field(format!("{name}.disable_additional_properties"), message));
    }
    let space = given.remove("whitespace_pattern");
    let mut found = Vec::new();
    for (field, kind) in
        [("json", Kind::Json), ("regex", Kind::Regex), ("choice", Kind::Choice), ("grammar", Kind::Grammar)]
    {
        if let Some(value) = given.remove(field) {
            found.push(kind.form(&format!("{name}.{field}"), value)?);
        }
    }
    if object {
        found.push(Kind::Object.form(&format!("{name}.json_object"), Value::Null)?);
    }
    if let Some(other) = given.keys().find(|field| !field.starts_with('_')) {
        let message = "is not supported: `json`, `regex`, `choice`, `grammar` and `json_object` are";
        return Err(ApiError::field(format!("{name}.{other}"), message));
    }
    let [form] = found.as_mut_slice() else {
        return Err(ApiError::field(name, "must have one of `json`, `regex`, `choice`, `grammar` and `json_object`"));
    };
    if let Rule::Json(schema) = &mut form.rule {
        match space {
            Some(space @ Value::String(_)) => option(schema, "whitespace_pattern", space),
            Some(_) => return Err(ApiError::field(format!("{name}.whitespace_pattern"), "must be a text")),
            None => {}
        }
        if tight {
            option(schema, "whitespace_flexible", Value::Bool(false));
        }
    }
    Ok(found.pop())
}

/// Sets what llguidance is told with a schema.
fn option(schema: &mut Value, name: &str, value: Value) {
    if *schema == Value::Bool(true) {
        *schema = json!({});
    }
    if let Value::Object(fields) = schema {
        let options = fields.entry("x-guidance").or_insert_with(|| json!({}));
        if let Value::Object(options) = options {
            options.insert(name.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;

    use super::*;

    fn taken(request: &Value) -> Result<Option<Form>, String> {
        let mut fields = Fields::parse(&Bytes::from(request.to_string())).map_err(|error| error.json().to_string())?;
        take(&mut fields).map_err(|error| error.json()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn every_way_to_ask_for_a_form_means_the_same() {
        let schema = json!({"type": "object", "properties": {"z": {"type": "integer"}, "a": {}}});
        let form = |field: &str, rule: Rule| Ok(Some(Form { field: field.to_owned(), rule }));
        for (request, field) in [
            (json!({"guided_json": schema}), "guided_json"),
            (json!({"guided_json": schema.to_string()}), "guided_json"),
            (json!({"json_schema": schema}), "json_schema"),
            (json!({"structured_outputs": {"json": schema, "regex": null}}), "structured_outputs.json"),
            (json!({"response_format": {"type": "json_object", "schema": schema}}), "response_format.schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
                "response_format.json_schema.schema",
            ),
        ] {
            assert_eq!(taken(&request), form(field, Rule::Json(schema.clone())), "{request}");
        }
        let object = || Rule::Json(json!({"type": "object"}));
        assert_eq!(taken(&json!({"response_format": {"type": "json_object"}})), form("response_format", object()));
        assert_eq!(
            taken(&json!({"structured_outputs": {"json_object": true}})),
            form("structured_outputs.json_object", object())
        );
        assert_eq!(taken(&json!({"guided_regex": "a+"})), form("guided_regex", Rule::Regex("a+".to_owned())));
        let lark = "start: \"a\"";
        assert_eq!(taken(&json!({"grammar": lark})), form("grammar", Rule::Lark(lark.to_owned())));
        let choice = form("guided_choice", Rule::Lark("start: CHOICE\nCHOICE: \"a\\\"\" | \"b\"\n".to_owned()));
        assert_eq!(taken(&json!({"guided_choice": ["a\"", "b"]})), choice);
        for none in [json!({}), json!({"response_format": {"type": "text"}}), json!({"guided_json": null})] {
            assert_eq!(taken(&none), Ok(None), "{none}");
        }
        let spaced = taken(&json!({"guided_json": schema, "guided_whitespace_pattern": " ?"})).unwrap().unwrap();
        let Rule::Json(spaced) = spaced.rule else { unreachable!("it is JSON") };
        assert_eq!(spaced["x-guidance"]["whitespace_pattern"], " ?");
    }

    #[test]
    fn what_is_wrong_with_a_form_is_named() {
        for (request, field) in [
            (json!({"response_format": {"type": "structural_tag"}}), "response_format"),
            (json!({"response_format": "json_object"}), "response_format"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_json": 3}), "guided_json"),
            (json!({"guided_regex": ["a"]}), "guided_regex"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", ""]}), "guided_choice"),
            (json!({"guided_grammar": "  "}), "guided_grammar"),
            (json!({"guided_grammar": format!("start: \"a\"{}", " ".repeat(GRAMMAR.0))}), "guided_grammar"),
            (json!({"grammar": format!("start: \"a\"{}", "\n".repeat(GRAMMAR.1 + 1))}), "grammar"),
            (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex"),
            (
                json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
                "structured_outputs.regex",
            ),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"json": {}, "regex": "a"}}), "structured_outputs"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (json!({"structured_outputs": {"json_object": 1}}), "structured_outputs.json_object"),
            (json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern"),
            (json!({"guided_decoding_backend": 7}), "guided_decoding_backend"),
        ] {
            assert_eq!(taken(&request), Err(field.to_owned()), "{request}");
        }
    }
}
