//! Finds calls of tools in a text that arrives in parts.

use std::sync::Arc;

use super::Tool;
use super::found::{Found, Part, named, one, several};
use super::{python, xml};
use crate::chat::ToolFormat;

/// Bytes of a call that are waited for; what is longer is text.
const LONGEST: usize = 1 << 20;

/// Reads an answer.
#[derive(Debug)]
pub(in super::super) struct Parser {
    format: ToolFormat,
    tools: Arc<[Tool]>,
    /// What is not decided yet.
    held: String,
    /// The mark that is read, or nothing before a bare object, when a call is expected.
    inside: Option<&'static str>,
    /// Text or a call came already.
    begun: bool,
    /// The last part was a call.
    after_call: bool,
}

impl Parser {
    /// Of an answer in a format, with calls of `tools`. `opening` is what the model was made to begin with.
    pub(in super::super) fn new(format: ToolFormat, opening: &str, tools: Arc<[Tool]>) -> Self {
        Self { format, tools, held: opening.to_owned(), inside: None, begun: false, after_call: false }
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
                let bare = (!self.begun && self.held.starts_with('{'))
                    || (self.after_call && self.held.starts_with(['{', ';']));
                let listed = !self.begun && self.held.starts_with('[') && self.format == ToolFormat::Pythonic;
                if listed || (bare && self.format == ToolFormat::Llama) {
                    self.inside = Some("");
                } else if let Some((at, mark)) = self.mark(0) {
                    self.text(&mut parts, at);
                    // The other marks are parts of calls.
                    let mark = if mark == self.format.mark() { mark } else { "" };
                    self.held.drain(..mark.len());
                    self.inside = Some(mark);
                } else {
                    let begun = self.format.marks().iter().map(|mark| overlap(&self.held, mark)).max().unwrap_or(0);
                    let end = if over { self.held.len() } else { self.held.len() - begun };
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
                    let next = self.mark(mark.len().max(1));
                    let end = next.map_or(self.held.len(), |(at, _)| at);
                    self.text(&mut parts, end);
                }
            }
        }
    }

    /// The first mark of a call in what is held from a place on, and where.
    fn mark(&self, from: usize) -> Option<(usize, &'static str)> {
        let rest = self.held.get(from..)?;
        let found = |mark: &&'static str| rest.find(*mark).map(|at| (from + at, *mark));
        self.format.marks().iter().filter_map(found).min()
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
            (ToolFormat::QwenXml, _) => xml::call(body, &self.tools, over),
            (ToolFormat::Pythonic, _) => python::calls(body),
            (_, true) if body.starts_with('{') => one(body),
            _ => Found::Nothing,
        };
        match found {
            Found::Calls(calls, end) => {
                let mut end = skipped + end;
                if matches!(self.format, ToolFormat::Hermes | ToolFormat::QwenXml) {
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

    fn tools() -> Arc<[Tool]> {
        let parameters = serde_json::json!({"properties": {"n": {"type": "integer"}}});
        vec![Tool { name: "look".to_owned(), parameters: Some(parameters), strict: false }].into()
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
        let mut whole = Parser::new(format, opening, tools());
        let mut parts = whole.push(answer);
        parts.extend(whole.finish());
        let mut letters = Parser::new(format, opening, tools());
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

    #[test]
    fn calls_of_qwen3_coder_have_their_parameters_between_marks() {
        use ToolFormat::QwenXml;
        let one = "<tool_call>\n<function=look>\n<parameter=where>\nthe < yard\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>";
        let look = called("look", r#"{"where":"the < yard","n":3}"#);
        assert_eq!(parsed(QwenXml, "", one), only(&look));
        let several = format!("I look.\n{one}\n{one}");
        assert_eq!(parsed(QwenXml, "", &several), [text("I look.\n"), look.clone(), look.clone()]);
        // The model forgets the first mark now and then, and cuts off the last ones.
        let bare = one.trim_start_matches("<tool_call>\n");
        assert_eq!(parsed(QwenXml, "", bare), only(&look));
        assert_eq!(parsed(QwenXml, "", one.trim_end_matches("</function>\n</tool_call>")), only(&look));
        let twice = format!("{}\n{bare}", one.trim_end_matches("\n</tool_call>"));
        assert_eq!(parsed(QwenXml, "", &twice), [look.clone(), look]);
        assert_eq!(parsed(QwenXml, "<tool_call>\n<function=look>", "\n</function>"), [called("look", "{}")]);
        for plain in ["a <b", "<tool_call>{\"name\": 3}", "<tool_call>\n<function=look", "a <function"] {
            assert_eq!(parsed(QwenXml, "", plain), [text(plain)]);
        }
    }

    #[test]
    fn calls_of_llama_as_python_are_the_whole_answer() {
        use ToolFormat::Pythonic;
        let two = "[look(where='the yard', depth=2, all=None), go()]";
        let calls = [called("look", r#"{"where":"the yard","depth":2,"all":null}"#), called("go", "{}")];
        assert_eq!(parsed(Pythonic, "", two), calls);
        assert_eq!(parsed(Pythonic, "", &format!("<|python_start|>{two}")), calls);
        assert_eq!(parsed(Pythonic, "[look(", "where=[\"a\", True])]"), [called("look", r#"{"where":["a",true]}"#)]);
        for plain in ["[1, 2]", "[look", "[look()", "I see [look()]", "[look(1)]", "[a b()]", "look()"] {
            assert_eq!(parsed(Pythonic, "", plain), [text(plain)]);
        }
    }
}
