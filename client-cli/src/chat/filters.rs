//! Filters that the engine does not have, or has otherwise than Jinja2.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::{json, methods};

/// Adds them.
pub(super) fn install(environment: &mut Environment<'static>) {
    for name in ["escape", "e"] {
        environment.add_filter(name, |value: &Value| escape(&value.to_string()));
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("int", int);
    environment.add_filter("float", |value: &Value, otherwise: Option<f64>| {
        let number = value.to_string().trim().parse().or_else(|_| f64::try_from(value.clone()));
        number.unwrap_or(otherwise.unwrap_or(0.0))
    });
    environment.add_filter("string", |value: &Value| match (value.kind(), f64::try_from(value.clone())) {
        (ValueKind::Number, Ok(float)) if !value.is_integer() => Value::from(json::float(float)),
        (ValueKind::String, _) => value.clone(),
        _ => Value::from(value.to_string()),
    });
    // The keys of an object are no attributes of it.
    environment.add_filter("attr", |value: &Value, name: String| match value.kind() {
        ValueKind::Map => Value::UNDEFINED,
        _ => value.get_attr(&name).unwrap_or_default(),
    });
    environment.add_filter("title", |text: &Value| title(&text.to_string()));
    environment.add_filter("center", |value: &Value, width: Option<usize>| {
        methods::centre(&value.to_string(), width.unwrap_or(80), ' ')
    });
    environment.add_filter("wordcount", |text: &Value| {
        let text = text.to_string();
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", |value: &Value| url(&value.to_string()));
}

fn default(value: &Value, otherwise: Option<Value>, boolean: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let otherwise = match otherwise {
        Some(otherwise) => otherwise,
        None => kwargs.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => kwargs.get::<Option<Value>>("boolean")?.unwrap_or_default(),
    };
    kwargs.assert_all_used()?;
    let missing = value.is_undefined() || boolean.is_true() && !value.is_true();
    Ok(if missing { otherwise } else { value.clone() })
}

/// A whole number, or 0: the filter never fails.
fn int(value: &Value, otherwise: Option<Value>, base: Option<u32>) -> Value {
    let text = value.to_string();
    let text = text.trim();
    let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
    let whole = i64::from_str_radix(text, base).ok();
    // What is cut off a float is its fraction, and floats too large for a number here are the largest.
    let whole = whole.or_else(|| value.is_true().then_some(1).filter(|_| value.kind() == ValueKind::Bool));
    let whole = whole.or_else(|| text.parse::<f64>().ok().filter(|float| float.is_finite()).map(|float| float as i64));
    whole.map_or_else(|| otherwise.unwrap_or_else(|| Value::from(0)), Value::from)
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(state: &State, value: &Value, length: Option<usize>, kwargs: Kwargs) -> Result<String, Error> {
    let length = match length {
        Some(length) => length,
        None => kwargs.get::<Option<usize>>("length")?.unwrap_or(255),
    };
    let cut_words = kwargs.get::<Option<bool>>("killwords")?.unwrap_or(false);
    let end = kwargs.get::<Option<String>>("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = kwargs.get::<Option<usize>>("leeway")?.unwrap_or(5);
    kwargs.assert_all_used()?;
    let text = value.to_string();
    state.consume_fuel((text.len() / 64) as u64)?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = if cut_words { kept.as_str() } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(kept.to_owned() + &end)
}

/// As in an address: bytes other than letters, digits and a few marks in hexadecimal.
fn url(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// HTML as markupsafe writes it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Jinja's filter: words begin behind spaces, hyphens and brackets alone, unlike those of Python's method.
fn title(text: &str) -> String {
    let mut begins = true;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if begins {
            titled.extend(c.to_uppercase())
        } else {
            titled.extend(c.to_lowercase())
        }
        begins = c.is_whitespace() || "-([{<".contains(c);
    }
    titled
}
