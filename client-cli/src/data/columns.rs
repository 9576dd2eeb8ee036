//! Which columns, or fields of JSON objects, are read.
//!
//! | task | columns, the first that are there |
//! |---|---|
//! | seq-cls | `text`, `sentence` or `content`, and `label` |
//! | causal-lm | `messages` or `conversations` (conversations, see `conversation`) |
//! | | `prompt` and `completion`: two texts, or two lists of messages |
//! | | `instruction`, `input` (may be missing) and `output` |
//! | | `text`, `sentence` or `content` |

use serde_json::{Map, Value};

/// A row of a data file by its columns.
pub(super) type Fields = Map<String, Value>;

/// Columns that have names of their own; `None` are those that everybody uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Columns {
    /// The text.
    pub(crate) text: Option<String>,
    /// The class.
    pub(crate) label: Option<String>,
    /// What comes in front of the completion, without a loss.
    pub(crate) prompt: Option<String>,
    /// What is to follow the prompt.
    pub(crate) completion: Option<String>,
}

/// What a row of causal-lm is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// A conversation in this column.
    Messages(&'static str),
    /// A prompt and its completion, in these columns.
    Completion(String, String),
    /// `instruction`, `input` and `output`.
    Instruction,
    /// One text, in this column.
    Text(String),
}

/// Usual names of the column with the text.
pub(super) const TEXT: [&str; 3] = ["text", "sentence", "content"];
/// Usual names of the column with the class.
pub(super) const LABEL: [&str; 2] = ["label", "labels"];
/// Columns with conversations.
pub(super) const CONVERSATIONS: [&str; 2] = ["messages", "conversations"];

impl Columns {
    /// The column of the text: the one named, or the usual one that is there; `None` if neither is.
    pub(super) fn text<'a>(&'a self, fields: &Fields) -> Option<&'a str> {
        first(self.text.as_deref(), &TEXT, fields)
    }

    /// The column of the class.
    pub(super) fn label<'a>(&'a self, fields: &Fields) -> Option<&'a str> {
        first(self.label.as_deref(), &LABEL, fields)
    }

    /// What a row of causal-lm is, by the columns that it has; `None` if by none of them.
    pub(super) fn shape(&self, fields: &Fields) -> Option<Shape> {
        if let (Some(prompt), Some(completion)) = (&self.prompt, &self.completion) {
            return Some(Shape::Completion(prompt.clone(), completion.clone()));
        }
        if let Some(text) = &self.text {
            return Some(Shape::Text(text.clone()));
        }
        let has = |name: &str| fields.contains_key(name);
        if let Some(name) = CONVERSATIONS.into_iter().find(|name| has(name)) {
            return Some(Shape::Messages(name));
        }
        if has("prompt") || has("completion") {
            return Some(Shape::Completion("prompt".to_owned(), "completion".to_owned()));
        }
        if has("instruction") && has("output") {
            return Some(Shape::Instruction);
        }
        self.text(fields).map(|name| Shape::Text(name.to_owned()))
    }
}

fn first<'a>(named: Option<&'a str>, usual: &[&'static str], fields: &Fields) -> Option<&'a str> {
    match named {
        Some(name) => fields.contains_key(name).then_some(name),
        None => usual.iter().copied().find(|name| fields.contains_key(*name)),
    }
}
