//! What an answer is to be like.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::serve::error::ApiError;

/// Most bytes of a schema, an expression or a grammar.
const LONGEST: usize = 256 << 10;
/// Most alternatives of one `oneOf`, and patterns of one `patternProperties`: each is compared with each.
const COMPARED: usize = 200;
/// White space in JSON between two of its parts. Models that are not sure how to go on like to write it without end.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Form {
    /// The field of the request that asks for it.
    pub(in crate::serve) field: String,
    /// What the answer is to be like.
    pub(in crate::serve) rule: Rule,
}

/// What an answer is to be like.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) enum Rule {
    /// JSON of a schema.
    Json(Value),
    /// The whole of it matches a regular expression.
    Regex(String),
    /// A grammar in llguidance's kind of Lark.
    Lark(String),
}

impl Form {
    /// One of these texts.
    pub(in crate::serve) fn choice(field: &str, texts: &[String]) -> Self {
        let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
        let lark = format!("start: CHOICE\nCHOICE: {}\n", texts.join(" | "));
        Self { field: field.to_owned(), rule: Rule::Lark(lark) }
    }

    /// The same for llguidance.
    ///
    /// # Errors
    /// 400, naming the field: it is too long, or would take too long.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, ApiError> {
        let wrong = |message: String| Err(ApiError::field(&self.field, message));
        let length = match &self.rule {
            Rule::Json(schema) => schema.to_string().len(),
            Rule::Regex(text) | Rule::Lark(text) => text.len(),
        };
        if length > LONGEST {
            return wrong(format!("has {length} bytes, {LONGEST} are allowed: make it simpler"));
        }
        match &self.rule {
            Rule::Json(schema) => match bounded(schema) {
                Ok(()) => Ok(TopLevelGrammar::from_json_schema(completed(schema.clone()))),
                Err(reason) => wrong(reason),
            },
            // All of the answer matches in any case.
            Rule::Regex(text) => Ok(TopLevelGrammar::from_regex(unanchored(text))),
            Rule::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        }
    }
}

/// A text as a literal of a grammar.
pub(in crate::serve) fn quoted(text: &str) -> String {
    // The one control character that JSON lets stand as it is, and Lark does not.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A schema with this server's defaults, as llguidance reads them: where white space may be, and that `oneOf` means `anyOf`, which is
/// all that can be said while a text grows. What the schema says itself counts more.
pub(in crate::serve) fn completed(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(true) => serde_json::Map::new(),
        other => return other,
    };
    let options = schema.entry("x-guidance").or_insert_with(|| json!({}));
    if let Value::Object(options) = options {
        if options.get("whitespace_flexible") != Some(&Value::Bool(false)) {
            options.entry("whitespace_pattern").or_insert_with(|| SPACE.into());
        }
        options.entry("coerce_one_of").or_insert(Value::Bool(true));
    }
    Value::Object(schema)
}

/// Whether the parts of a schema that are compared with each other are few enough.
///
/// # Errors
/// Which are not.
pub(in crate::serve) fn bounded(schema: &Value) -> Result<(), String> {
    let few = |keyword: &str, count: Option<usize>| match count {
        Some(count) if count > COMPARED => {
            Err(format!("has `{keyword}` of {count} entries, {COMPARED} are allowed: split it up"))
        }
        _ => Ok(()),
    };
    match schema {
        Value::Object(fields) => {
            few("oneOf", fields.get("oneOf").and_then(Value::as_array).map(Vec::len))?;
            let patterns = fields.get("patternProperties").and_then(Value::as_object);
            few("patternProperties", patterns.map(serde_json::Map::len))?;
            fields.values().try_for_each(bounded)
        }
        Value::Array(list) => list.iter().try_for_each(bounded),
        _ => Ok(()),
    }
}

/// A regular expression without the anchors at its ends.
fn unanchored(text: &str) -> &str {
    let text = text.strip_prefix('^').unwrap_or(text);
    match text.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0 => rest,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_say_what_is_so_in_any_case() {
        for (given, kept) in [("^a$", "a"), ("a", "a"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("^a$|^b$", "a$|^b")] {
            assert_eq!(unanchored(given), kept);
        }
    }

    #[test]
    fn defaults_give_way_to_what_a_schema_says() {
        let spaced = completed(json!({"type": "object"}));
        assert_eq!(spaced["x-guidance"]["whitespace_pattern"], SPACE);
        let own = completed(json!({"x-guidance": {"whitespace_flexible": false, "coerce_one_of": false}}));
        assert_eq!(own["x-guidance"], json!({"whitespace_flexible": false, "coerce_one_of": false}));
        assert_eq!(completed(json!(false)), json!(false));
    }

    #[test]
    fn what_is_compared_with_each_other_is_bounded() {
        let many: Vec<Value> = (0..=COMPARED).map(|number| json!({ "const": number })).collect();
        let form = |schema: Value| Form { field: "f".to_owned(), rule: Rule::Json(schema) };
        assert!(form(json!({"properties": {"a": {"anyOf": many}}})).grammar().is_ok());
        let error = form(json!({"properties": {"a": {"oneOf": many}}})).grammar().unwrap_err().json().to_string();
        assert!(error.contains("`f` has `oneOf` of 201 entries"), "{error}");
        let long = Form { field: "g".to_owned(), rule: Rule::Regex("a".repeat(LONGEST + 1)) };
        assert!(long.grammar().is_err());
    }
}
