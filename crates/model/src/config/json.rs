//! JSON as Python writes and reads it.

use serde_json::{Error, Value};

/// Parses a text that may begin with a byte order mark and hold `NaN`, `Infinity` and `-Infinity`, which Python writes for such
/// numbers though JSON has none. They come out as strings of these names: a key that nobody reads does no harm, one that is read is
/// refused with its name and value.
///
/// # Errors
/// What is wrong with the text as JSON.
pub fn parse_json(text: &str) -> Result<Value, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).or_else(|error| {
        let quoted = quote_constants(text).ok_or(error)?;
        serde_json::from_str(&quoted)
    })
}

/// The text with Python's constants in quotes, or nothing if it has none outside of strings.
fn quote_constants(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 16);
    let (mut rest, mut found) = (text, false);
    while let Some(at) = rest.find(['"', 'N', 'I', '-']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(name) = ["-Infinity", "Infinity", "NaN"].into_iter().find(|name| rest.starts_with(name)) {
            out.extend(["\"", name, "\""]);
            (rest, found) = (&rest[name.len()..], true);
            continue;
        }
        let end = if rest.starts_with('"') { end_of_string(rest) } else { 1 };
        out.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    out.push_str(rest);
    found.then_some(out)
}

/// Length of the string that a text begins with, its quotes included.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_python_are_read_outside_of_strings_only() {
        let value = parse_json("\u{feff}{\"a\": [NaN, -Infinity, Infinity, -1], \"NaN \\\" NaN\": \"-Infinity \\\\\"}")
            .unwrap();
        assert_eq!(value["a"], serde_json::json!(["NaN", "-Infinity", "Infinity", -1]));
        assert_eq!(value["NaN \" NaN"], "-Infinity \\");
    }

    #[test]
    fn what_is_no_json_stays_an_error() {
        for text in ["", "{", "NaNN", "{\"a\": NaN", "{\"a", "{\"a\\", "-", "nan"] {
            assert!(parse_json(text).is_err(), "{text}");
        }
    }
}
