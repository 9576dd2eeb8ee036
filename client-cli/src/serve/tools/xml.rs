//! Calls as Qwen3-Coder writes them, with parameters between marks. What values are of their tool's schema says, as vLLM's parser for this
//! model reads them.

use serde_json::{Map, Value};

use super::found::{Found, Part};
use super::{Tool, python};

const FUNCTION: [&str; 2] = ["<function=", "</function>"];
const PARAMETER: [&str; 2] = ["<parameter=", "</parameter>"];

/// Reads the call that a text begins with. `over`: nothing follows, so marks at the end may be missing.
pub(super) fn call(text: &str, tools: &[Tool], over: bool) -> Found {
    let Some(inner) = text.strip_prefix(FUNCTION[0]) else {
        return if FUNCTION[0].starts_with(text) { Found::Unclear } else { Found::Nothing };
    };
    let (inner, end) = match inner.find(FUNCTION[1]) {
        Some(at) => (inner.get(..at).unwrap_or_default(), FUNCTION[0].len() + at + FUNCTION[1].len()),
        None if over => (inner, text.len()),
        None => return Found::Unclear,
    };
    let Some((name, mut rest)) = inner.split_once('>') else { return Found::Nothing };
    let tool = tools.iter().find(|tool| tool.name == name);
    let mut arguments = Map::new();
    while let Some((_, behind)) = rest.split_once(PARAMETER[0]) {
        let end = [PARAMETER[1], PARAMETER[0]].iter().filter_map(|mark| behind.find(mark)).min();
        let (parameter, next) = behind.split_at(end.unwrap_or(behind.len()));
        let Some((key, value)) = parameter.split_once('>') else { return Found::Nothing };
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.to_owned(), typed(value, tool.and_then(|tool| property(tool, key))));
        rest = next;
    }
    let arguments = Value::from(arguments).to_string();
    Found::Calls(vec![Part::Call { name: name.to_owned(), arguments }], end)
}

/// The schema of a parameter.
fn property<'a>(tool: &'a Tool, key: &str) -> Option<&'a Value> {
    let schema = tool.parameters.as_ref()?;
    schema.get("properties").unwrap_or(schema).get(key)
}

/// A value of the type that a schema says.
fn typed(text: &str, schema: Option<&Value>) -> Value {
    let plain = || Value::from(text);
    if text.eq_ignore_ascii_case("null") {
        return Value::Null;
    }
    let Some(schema) = schema else { return plain() };
    let kind = match schema.get("type") {
        Some(Value::String(kind)) => kind.trim().to_ascii_lowercase(),
        None => "string".to_owned(),
        // Several types are none that it knows.
        Some(_) => String::new(),
    };
    let is = |names: &[&str]| names.contains(&kind.as_str());
    let begins = |names: &[&str]| names.iter().any(|name| kind.starts_with(name));
    if is(&["string", "str", "text", "varchar", "char", "enum"]) {
        plain()
    } else if begins(&["int", "uint", "long", "short", "unsigned"]) {
        let text = text.trim();
        let number = text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from));
        number.unwrap_or_else(|_| plain())
    } else if begins(&["num", "float"]) {
        match text.trim().parse::<f64>() {
            Ok(number) if number.fract() == 0.0 && number.abs() < 9e15 => Value::from(number as i64),
            Ok(number) if number.is_finite() => Value::from(number),
            _ => plain(),
        }
    } else if is(&["boolean", "bool", "binary"]) {
        Value::from(text.eq_ignore_ascii_case("true"))
    } else {
        let json = is(&["object", "array", "arr"]) || begins(&["dict", "list"]);
        let value = if json { serde_json::from_str(text).ok() } else { None };
        value.or_else(|| python::literal(text)).unwrap_or_else(plain)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool() -> Tool {
        let parameters = json!({"type": "object", "properties": {
            "text": {"type": "string"}, "count": {"type": "integer"}, "share": {"type": "number"}, "all": {"type": "boolean"},
            "list": {"type": "array"}, "either": {"type": ["integer", "null"]}, "any": {},
        }});
        Tool { name: "look".to_owned(), parameters: Some(parameters), strict: false }
    }

    /// As vLLM's `Qwen3CoderToolParser._convert_param_value` has them.
    #[test]
    fn values_have_the_types_of_their_schemas() {
        for (key, text, value) in [
            ("text", "5", json!("5")),
            ("text", "null", json!(null)),
            ("text", "  two\nlines ", json!("  two\nlines ")),
            ("count", " 5 ", json!(5)),
            ("count", "5.0", json!("5.0")),
            ("share", "5.0", json!(5)),
            ("share", "0.25", json!(0.25)),
            ("share", "inf", json!("inf")),
            ("share", "half", json!("half")),
            ("all", "True", json!(true)),
            ("all", "yes", json!(false)),
            ("list", "[1, {\"z\": true, \"a\": null}]", json!([1, {"z": true, "a": null}])),
            ("list", "['a', True]", json!(["a", true])),
            ("list", "a, b", json!("a, b")),
            ("either", "5", json!(5)),
            ("either", "five", json!("five")),
            ("any", "5", json!("5")),
            ("unknown", "5", json!("5")),
        ] {
            let text = format!("<function=look>\n<parameter={key}>\n{text}\n</parameter>\n</function>");
            let arguments = json!({ key: value }).to_string();
            let expected = vec![Part::Call { name: "look".to_owned(), arguments }];
            assert_eq!(call(&text, &[tool()], false), Found::Calls(expected, text.len()));
        }
    }

    #[test]
    fn marks_at_the_end_may_be_missing() {
        let of = |text: &str, over: bool| match call(text, &[tool()], over) {
            Found::Calls(calls, _) => match calls.as_slice() {
                [Part::Call { name, arguments }] => format!("{name} {arguments}"),
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        };
        assert_eq!(of("<function=look></function> more", false), "look {}");
        let two = "<function=look><parameter=count>1<parameter=text>b</parameter>";
        assert_eq!(
            (of(two, false), of(two, true)),
            ("Unclear".to_owned(), r#"look {"count":1,"text":"b"}"#.to_owned())
        );
        assert_eq!((of("<func", false), of("<fun ", false)), ("Unclear".to_owned(), "Nothing".to_owned()));
        assert_eq!((of("<function=look", true), of("{}", false)), ("Nothing".to_owned(), "Nothing".to_owned()));
    }
}
