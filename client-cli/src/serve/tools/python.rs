//! Values and calls as Python writes them: some models are told to, others do where JSON was meant.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::{Map, Number, Value};

use super::found::{Found, Part};

/// How deep values may be nested.
const DEPTH: usize = 64;

/// The value that a text is, as `ast.literal_eval` reads it and `json.dumps` writes it.
pub(super) fn literal(text: &str) -> Option<Value> {
    let mut reader = Reader { chars: text.chars().peekable() };
    reader.space();
    let value = reader.value(0)?;
    reader.space();
    reader.chars.next().is_none().then_some(value)
}

/// The list of calls that a text begins with: `[name(key=value), …]`.
pub(super) fn calls(text: &str) -> Found {
    let mut reader = Reader { chars: text.chars().peekable() };
    match reader.calls() {
        Some(calls) => Found::Calls(calls, text.len() - reader.chars.map(char::len_utf8).sum::<usize>()),
        // What was wrong may be that there is no more.
        None if reader.chars.peek().is_none() => Found::Unclear,
        None => Found::Nothing,
    }
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    fn space(&mut self) {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn eat(&mut self, wanted: char) -> bool {
        self.chars.next_if_eq(&wanted).is_some()
    }

    fn calls(&mut self) -> Option<Vec<Part>> {
        let mut calls = Vec::new();
        if !self.eat('[') {
            return None;
        }
        loop {
            self.space();
            let name = self.name()?;
            if !self.eat('(') {
                return None;
            }
            let mut arguments = Map::new();
            loop {
                self.space();
                if self.eat(')') {
                    break;
                }
                let key = self.name()?;
                self.space();
                if !self.eat('=') {
                    return None;
                }
                self.space();
                arguments.insert(key, self.value(0)?);
                self.space();
                if !self.eat(',') && self.chars.peek() != Some(&')') {
                    return None;
                }
            }
            calls.push(Part::Call { name, arguments: Value::from(arguments).to_string() });
            self.space();
            if self.eat(']') {
                return Some(calls);
            }
            if !self.eat(',') {
                return None;
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|&c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            name.push(c);
        }
        (!name.is_empty()).then_some(name)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        match *self.chars.peek()? {
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.map(depth),
            '\'' | '"' => self.text().map(Value::String),
            _ => self.word(),
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Option<Value> {
        self.chars.next();
        let (mut list, mut commas) = (Vec::new(), 0);
        loop {
            self.space();
            if self.eat(close) {
                // One value in parentheses is that value.
                return if close == ')' && list.len() == 1 && commas == 0 { list.pop() } else { Some(list.into()) };
            }
            list.push(self.value(depth + 1)?);
            self.space();
            if self.eat(',') {
                commas += 1;
            } else if self.chars.peek() != Some(&close) {
                return None;
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Value> {
        self.chars.next();
        let mut map = Map::new();
        loop {
            self.space();
            if self.eat('}') {
                return Some(map.into());
            }
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                key @ (Value::Number(_) | Value::Bool(_) | Value::Null) => key.to_string(),
                _ => return None,
            };
            self.space();
            if !self.eat(':') {
                return None;
            }
            self.space();
            map.insert(key, self.value(depth + 1)?);
            self.space();
            if !self.eat(',') && self.chars.peek() != Some(&'}') {
                return None;
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let quote = self.chars.next()?;
        let mut text = String::new();
        loop {
            match self.chars.next()? {
                c if c == quote => return Some(text),
                '\n' => return None,
                '\\' => self.escape(&mut text)?,
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let digits = match self.chars.next()? {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => {
                match other {
                    '\n' => {}
                    '\\' | '\'' | '"' => text.push(other),
                    'n' => text.push('\n'),
                    'r' => text.push('\r'),
                    't' => text.push('\t'),
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    'v' => text.push('\u{b}'),
                    'a' => text.push('\u{7}'),
                    // Python leaves what it does not know.
                    _ => text.extend(['\\', other]),
                }
                return Some(());
            }
        };
        let hex: String = self.chars.by_ref().take(digits).collect();
        text.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
        Some(())
    }

    fn word(&mut self) -> Option<Value> {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|&c| c.is_ascii_alphanumeric() || "+-._".contains(c)) {
            word.push(c);
        }
        match word.as_str() {
            "True" => Some(true.into()),
            "False" => Some(false.into()),
            "None" => Some(Value::Null),
            number if number.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => {
                let whole = number.parse::<i64>().map(Value::from).or_else(|_| number.parse::<u64>().map(Value::from));
                whole.ok().or_else(|| Number::from_f64(number.parse().ok()?).map(Value::Number))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_those_of_python() {
        // What Python's `json.dumps(ast.literal_eval(…))` makes of them.
        for (text, value) in [
            ("{'z': 'it\\'s', \"a\": [1, -2.5, True, None]}", json!({"z": "it's", "a": [1, -2.5, true, null]})),
            (" (1, 'b',) ", json!([1, "b"])),
            ("('a')", json!("a")),
            ("('a',)", json!(["a"])),
            ("()", json!([])),
            ("{1: 'x', None: 2}", json!({"1": "x", "null": 2})),
            ("'\\u00e4\\x41\\q\\n'", json!("\u{e4}A\\q\n")),
            ("1e3", json!(1000.0)),
            ("18446744073709551615", json!(u64::MAX)),
        ] {
            assert_eq!(literal(text), Some(value), "{text}");
        }
        for wrong in ["", "a", "true", "[1", "[1 2]", "{'a'}", "{'a': }", "'a", "1 2", "inf", "nan", "'a\nb'", "f()"] {
            assert_eq!(literal(wrong), None, "{wrong}");
        }
        assert_eq!(literal(&"[".repeat(100_000)), None);
    }
}
