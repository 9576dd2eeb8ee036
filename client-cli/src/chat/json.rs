//! The filter `tojson`: JSON as Python's `json.dumps` writes it. Jinja's own filter escapes for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// How deep values may be nested.
const DEPTH: usize = 200;
/// Most spaces that a level is indented by.
const INDENT: i64 = 64;

/// The filter, with the options of transformers: `ensure_ascii=False, indent=None, separators=None, sort_keys=False`.
pub(super) fn to_json(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    if positional.len() > 4 {
        return Err(Error::new(ErrorKind::TooManyArguments, "tojson takes four options at most"));
    }
    let option = |at: usize, name: &str| -> Result<Value, Error> {
        match positional.get(at) {
            Some(value) => Ok(value.clone()),
            None => Ok(named.get::<Option<Value>>(name)?.unwrap_or_default()),
        }
    };
    let (ascii, indent, separators, sort) =
        (option(0, "ensure_ascii")?, option(1, "indent")?, option(2, "separators")?, option(3, "sort_keys")?);
    named.assert_all_used()?;
    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(usize::try_from(i64::try_from(indent)?.clamp(0, INDENT)).unwrap_or(0))),
    };
    let (between, behind_key) = if separators.is_none() || separators.is_undefined() {
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
    } else {
        let both: Vec<Value> = separators.try_iter()?.collect();
        match both.as_slice() {
            [between, behind_key] => (between.to_string(), behind_key.to_string()),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "separators of tojson are two texts")),
        }
    };
    let (ascii, sort) = (ascii.is_true(), sort.is_true());
    let mut writer = Writer { state, ascii, indent, between, behind_key, sort, json: String::new() };
    writer.value(value, 0)?;
    Ok(writer.json)
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    ascii: bool,
    indent: Option<String>,
    between: String,
    behind_key: String,
    sort: bool,
    json: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // Values may hold others several times, so what is written may be much more than what there is.
        self.state.consume_fuel(1)?;
        if depth > DEPTH {
            return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.json.push_str("null"),
            ValueKind::Bool => self.json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.json.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.json.push('[');
                for (at, item) in items.iter().enumerate() {
                    self.begin_item(at, depth + 1)?;
                    self.value(item, depth + 1)?;
                }
                self.end(items.is_empty(), depth, ']')?;
            }
            ValueKind::Map => {
                let mut keys =
                    value.try_iter()?.map(|key| Ok((name(&key)?, key))).collect::<Result<Vec<_>, Error>>()?;
                if self.sort {
                    keys.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.json.push('{');
                for (at, (name, key)) in keys.iter().enumerate() {
                    self.begin_item(at, depth + 1)?;
                    self.text(name)?;
                    self.json.push_str(&self.behind_key);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.end(keys.is_empty(), depth, '}')?;
            }
            kind => {
                let message = format!("a value of type {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn begin_item(&mut self, at: usize, depth: usize) -> Result<(), Error> {
        if at > 0 {
            self.json.push_str(&self.between);
        }
        self.line(depth)
    }

    fn end(&mut self, empty: bool, depth: usize, bracket: char) -> Result<(), Error> {
        if !empty {
            self.line(depth)?;
        }
        self.json.push(bracket);
        Ok(())
    }

    /// A new line, if the output has lines.
    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.state.consume_fuel((indent.len() * depth / 64) as u64)?;
            self.json.push('\n');
            (0..depth).for_each(|_| self.json.push_str(indent));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel((text.len() / 64) as u64)?;
        self.json.push('"');
        for c in text.chars() {
            match c {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\u{8}' => self.json.push_str("\\b"),
                '\u{c}' => self.json.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.json, "\\u{unit:04x}");
                    }
                }
                c => self.json.push(c),
            }
        }
        self.json.push('"');
        Ok(())
    }
}

/// A key, which JSON has as a text.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("a key of type {kind} cannot be written as JSON"))),
    }
}

/// A number as Python prints it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => self::float(float),
        _ => value.to_string(),
    }
}

/// A float as `json.dumps` writes it: the shortest digits that are this number, with an exponent where there would be many zeros.
pub(super) fn float(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = float.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
