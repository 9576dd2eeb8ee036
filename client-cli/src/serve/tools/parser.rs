//! Finds calls of tools in a text that arrives in parts.

use serde::Deserialize;
use serde_json::error::Category;

use crate::chat::{Json, ToolFormat};

/// Bytes of a call that are waited for; what is longer is text.
const LONGEST: usize = 1 << 20;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Part {
    /// Text for people.
    Text(String),
    /// A call of a tool.
    Call {
        /// Which.
        name: String,
        /// JSON.
        arguments: String,
    },
}

/// A call as models write it.
#[derive(Debug, Deserialize)]
struct Written {
    name: String,
    #[serde(alias = "parameters")]
    arguments: Option<Json>,
}

/// Reads an answer.
#[derive(Debug)]
pub(in super::super) struct Parser {
    format: ToolFormat,
    /// What is not decided yet.
    held: String,
    /// The mark that is read, or nothing before a bare object, when a call is expected.
    inside: Option<&'static str>,
    /// Text or a call came already.
    begun: bool,
    /// The last part was a call.
    after_call: bool,
}

/// What the beginning of a text is.
enum Found {
    /// Calls, and the bytes that they take.
    Calls(Vec<Part>, usize),
    /// Perhaps the beginning of a call.
    Unclear,
    /// No call.
    Nothing,
}

impl Parser {
    /// Of an answer in a format. `opening` is what the model was made to begin with.
    pub(in super::super) fn new(format: ToolFormat, opening: &str) -> Self {
        Self { format, held: opening.to_owned(), inside: None, begun: false, after_call: false }
    }

    /// Takes more of the answer, and returns what is certain.
    pub(in super::super) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held += text;
        self.parts(false)
    }

    /// What is left, when no more comes.
    pub(in super::super) fn finish(&mut self) -> Vec<Part> {
        self.parts(true)
    }

    fn parts(&mut self, over: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        loop {
            if self.inside.is_none() {
                // White space in front of the answer and around calls is nobody's text.
                if !self.begun || self.after_call {
                    let blank = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..blank);
                }
                if self.held.is_empty() {
                    return parts;
                }
                let mark = self.format.mark();
                let bare = (!self.begun && self.held.starts_with('{'))
                    || (self.after_call && self.held.starts_with(['{', ';']));
                if bare && self.format == ToolFormat::Llama {
                    self.inside = Some("");
                } else if let Some(at) = self.held.find(mark) {
                    self.text(&mut parts, at);
                    self.held.drain(..mark.len());
                    self.inside = Some(mark);
                } else {
                    let end = if over { self.held.len() } else { self.held.len() - overlap(&self.held, mark) };
                    self.text(&mut parts, end);
                    return parts;
                }
            }
            match self.calls(over) {
                Found::Calls(calls, end) => {
                    parts.extend(calls);
                    self.held.drain(..end);
                    (self.inside, self.begun, self.after_call) = (None, true, true);
                }
                Found::Unclear if !over && self.held.len() < LONGEST => return parts,
                _ => {
                    // What looked like a call is text, up to the next mark.
                    let mark = self.inside.take().unwrap_or_default();
                    self.held.insert_str(0, mark);
                    let behind = mark.len().max(1);
                    let next = self.held.get(behind..).and_then(|rest| rest.find(self.format.mark()));
                    let end = next.map_or(self.held.len(), |at| at + behind);
                    self.text(&mut parts, end);
                }
            }
        }
    }

    /// Moves the first bytes of what is held to the parts.
    fn text(&mut self, parts: &mut Vec<Part>, end: usize) {
        let text: String = self.held.drain(..end).collect();
        if !text.is_empty() {
            parts.push(Part::Text(text));
            (self.begun, self.after_call) = (true, false);
        }
    }

    /// What is held is behind a mark.
    fn calls(&self, over: bool) -> Found {
        let body =
            self.held.trim_start_matches(|c: char| c.is_whitespace() || (self.format == ToolFormat::Llama && c == ';'));
        let skipped = self.held.len() - body.len();
        if body.is_empty() {
            return if over { Found::Nothing } else { Found::Unclear };
        }
        let found = match (self.format, body.starts_with(['{', '['])) {
            (ToolFormat::Mistral, true) if body.starts_with('[') => several(body),
            (ToolFormat::Mistral, false) => named(body),
            (_, true) if body.starts_with('{') => one(body),
            _ => Found::Nothing,
        };
        match found {
            Found::Calls(calls, end) => {
                let mut end = skipped + end;
                if self.format == ToolFormat::Hermes {
                    // The closing mark may be missing at the end of the answer; it is waited for.
                    let rest = self.held.get(end..).unwrap_or_default();
                    let close = "</tool_call>";
                    let blank = rest.len() - rest.trim_start().len();
                    let rest = rest.trim_start();
                    if rest.starts_with(close) {
                        end += blank + close.len();
                    } else if !over && close.starts_with(rest) {
                        return Found::Unclear;
                    }
                }
                Found::Calls(calls, end)
            }
            other => other,
        }
    }
}

/// An object with a name and arguments.
fn one(text: &str) -> Found {
    match first::<Written>(text) {
        Ok((Written { name, arguments: Some(arguments) }, end)) => Found::Calls(vec![call(name, &arguments)], end),
        Ok(_) => Found::Nothing,
        Err(found) => found,
    }
}

/// A list of them.
fn several(text: &str) -> Found {
    match first::<Vec<Written>>(text) {
        Ok((list, end)) => {
            let calls = list.into_iter().map(|Written { name, arguments }| call(name, &arguments.unwrap_or_default()));
            Found::Calls(calls.collect(), end)
        }
        Err(found) => found,
    }
}

/// The name, and the arguments behind it: what Mistral's later tokenizers write.
fn named(text: &str) -> Found {
    let Some(at) = text.find(['{', '[']) else {
        return if text.len() < 256 { Found::Unclear } else { Found::Nothing };
    };
    let (name, rest) = text.split_at(at);
    let mark = "[ARGS]";
    if mark.starts_with(rest) {
        return Found::Unclear;
    }
    let arguments = rest.strip_prefix(mark).unwrap_or(rest);
    let name = name.split('[').next().unwrap_or_default().trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Found::Nothing;
    }
    match first::<Json>(arguments) {
        Ok((value, end)) => Found::Calls(vec![call(name.to_owned(), &value)], at + rest.len() - arguments.len() + end),
        Err(found) => found,
    }
}

/// The JSON value that a text begins with, and its bytes.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Result<(T, usize), Found> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    match values.next() {
        Some(Ok(value)) => Ok((value, values.byte_offset())),
        Some(Err(error)) if error.classify() == Category::Eof => Err(Found::Unclear),
        None => Err(Found::Unclear),
        Some(Err(_)) => Err(Found::Nothing),
    }
}

fn call(name: String, arguments: &Json) -> Part {
    let arguments = match arguments.as_str() {
        // Some models write the object as a text.
        Some(text) => text.to_owned(),
        None if arguments.is_none() || arguments.is_undefined() => "{}".to_owned(),
        None => serde_json::to_string(arguments).unwrap_or_else(|_| "{}".to_owned()),
    };
    Part::Call { name, arguments }
}

/// Bytes at the end of `text` that `mark` begins with.
fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| mark.get(..length).is_some_and(|begin| text.ends_with(begin))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn called(name: &str, arguments: &str) -> Part {
        Part::Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    fn only(part: &Part) -> Vec<Part> {
        vec![part.clone()]
    }

    /// As a whole, and letter by letter with texts put together.
    fn parsed(format: ToolFormat, opening: &str, answer: &str) -> Vec<Part> {
        let together = |parts: Vec<Part>| {
            parts.into_iter().fold(Vec::new(), |mut all: Vec<Part>, part| {
                match (all.last_mut(), &part) {
                    (Some(Part::Text(last)), Part::Text(more)) => last.push_str(more),
                    _ => all.push(part),
                }
                all
            })
        };
        let mut whole = Parser::new(format, opening);
        let mut parts = whole.push(answer);
        parts.extend(whole.finish());
        let mut letters = Parser::new(format, opening);
        let mut pieces: Vec<Part> = answer.chars().flat_map(|c| letters.push(&c.to_string())).collect();
        pieces.extend(letters.finish());
        let parts = together(parts);
        assert_eq!(together(pieces), parts, "{answer:?}");
        parts
    }

    #[test]
    fn calls_of_hermes_and_qwen_stand_between_marks() {
        use ToolFormat::Hermes;
        let one = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"z\": \"</tool_call>\", \"a\": [1.5, null]}}\n</tool_call>";
        let look = called("look", r#"{"z":"</tool_call>","a":[1.5,null]}"#);
        assert_eq!(parsed(Hermes, "", one), only(&look));
        let several = format!("I see <b>.\n{one}\n{one}\n");
        assert_eq!(parsed(Hermes, "", &several), [text("I see <b>.\n"), look.clone(), look.clone()]);
        assert_eq!(
            parsed(Hermes, "", one.trim_end_matches("</tool_call>")),
            [look],
            "cut off by the end of the answer"
        );
        for plain in
            ["no call", "a < b <tool_cal", "<tool_call>{\"name\": 3}</tool_call> x", "<tool_call>{\"name\": \"lo"]
        {
            assert_eq!(parsed(Hermes, "", plain), [text(plain)]);
        }
        assert_eq!(
            parsed(Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\":", " {}}\n</tool_call>"),
            [called("f", "{}")]
        );
    }

    #[test]
    fn calls_of_llama_are_the_whole_answer_or_behind_its_mark() {
        use ToolFormat::Llama;
        let object = r#"{"name": "look", "parameters": {"where": "yard"}}"#;
        let look = called("look", r#"{"where":"yard"}"#);
        assert_eq!(parsed(Llama, "", object), only(&look));
        assert_eq!(parsed(Llama, "", &format!("\n<|python_tag|>{object}")), only(&look));
        assert_eq!(parsed(Llama, "", &format!("{object}; {object}")), [look.clone(), look]);
        for plain in
            ["{\"answer\": 42}", "{\"name\": \"Ann\"}", "{ is a brace", "see {\"name\": \"x\", \"parameters\": {}}"]
        {
            assert_eq!(parsed(Llama, "", plain), [text(plain)]);
        }
        assert_eq!(parsed(Llama, "{\"name\": \"", "f\", \"parameters\": {}}"), [called("f", "{}")]);
    }

    #[test]
    fn calls_of_mistral_are_a_list_or_names_with_arguments() {
        use ToolFormat::Mistral;
        let list = r#"[TOOL_CALLS] [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]"#;
        assert_eq!(parsed(Mistral, "", list), [called("a", r#"{"x":1}"#), called("b", "{}")]);
        let named = r#"Well.[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b{"y": "]"}"#;
        assert_eq!(parsed(Mistral, "", named), [text("Well."), called("a", r#"{"x":1}"#), called("b", r#"{"y":"]"}"#)]);
        for plain in ["[TOOL_CALLS][1]", "[1, 2]"] {
            assert_eq!(parsed(Mistral, "", plain), [text(plain)]);
        }
    }
}
