//! What can be wrong with a data file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use petals_client::{Label, LabelError, LabelMap, Task};

use crate::text::TextError;

/// Longest line in bytes. A longer one is not a line of examples but a file without line ends.
pub(super) const MAX_LINE_LEN: usize = 16 << 20;
/// Most labels listed in a message.
const LABELS_SHOWN: usize = 10;

/// Why a data file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DataError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One line is wrong.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// The text of a whole file, or of one line, cannot be tokenised.
    #[error("{}: the text cannot be tokenised", path.display())]
    Tokenise {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TextError,
    },
    /// Nothing to learn from.
    #[error("{} has no usable examples ({dropped} lines left out: too short, or cut off by --max-length)", path.display())]
    NoExamples {
        /// The file.
        path: PathBuf,
        /// Lines left out.
        dropped: usize,
    },
    /// The labels are not classes.
    #[error("the labels in {} cannot be used", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LabelError,
    },
    /// A text file for classification.
    #[error("{} is plain text, which has no labels: seq-cls needs JSON lines {{\"text\": …, \"label\": …}}", path.display())]
    PlainTextHasNoLabels {
        /// The file.
        path: PathBuf,
    },
    /// A file of token ids that is not one.
    #[error("{} is not a list of rows of token ids such as [[1, 2, 3], [4, 5, 6]]", path.display())]
    InputIds {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A row of token ids that cannot be used.
    #[error("{}: row {row} of token ids {problem}", path.display())]
    InputRow {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// What is wrong with one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum LineProblem {
    /// Longer than [`MAX_LINE_LEN`].
    TooLong,
    /// Not UTF-8 from this byte of the line on.
    NotUtf8(usize),
    /// Not JSON.
    NotJson(String),
    /// JSON, but not an object.
    NotAnObject,
    /// A field is missing.
    Missing(&'static str, Task),
    /// A field is not a text.
    NotText(&'static str),
    /// A field is an empty text.
    EmptyText(&'static str),
    /// A label is neither an integer nor a text.
    BadLabel(String),
    /// Both kinds of causal-lm lines at once.
    TextAndPrompt,
    /// A label that the classes do not have.
    UnknownLabel(Label, LabelMap),
    /// A number among texts, or the reverse.
    OtherKindOfLabel(Label, Label),
}

impl fmt::Display for LineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the line is longer than {MAX_LINE_LEN} bytes"),
            Self::NotUtf8(at) => write!(f, "the line is not UTF-8 at byte {at}"),
            Self::NotJson(error) => write!(f, "the line is not JSON: {error}"),
            Self::NotAnObject => f.write_str("the line is not a JSON object"),
            Self::Missing(field, task) => write!(f, "`{field}` is missing: expected {}", expected(*task)),
            Self::NotText(field) => write!(f, "`{field}` is not a text"),
            Self::EmptyText(field) => write!(f, "`{field}` is empty"),
            Self::BadLabel(got) => write!(f, "`label` is {got}: expected an integer or a text"),
            Self::TextAndPrompt => {
                f.write_str("the line has `text` and `prompt`: give `text`, or `prompt` and `completion`")
            }
            Self::UnknownLabel(label, known) => {
                write!(f, "the label {label} is not one of those trained on: {}", Shown(known))
            }
            Self::OtherKindOfLabel(label, first) => {
                write!(f, "the label {label} is of another kind than {first} before it: use integers or texts only")
            }
        }
    }
}

fn expected(task: Task) -> &'static str {
    match task {
        Task::CausalLm => r#"{"text": …} or {"prompt": …, "completion": …}"#,
        Task::SeqCls => r#"{"text": …, "label": …}"#,
    }
}

/// The first labels of a map.
struct Shown<'a>(&'a LabelMap);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.0.labels().iter().take(LABELS_SHOWN).map(Label::to_string).collect();
        f.write_str(&shown.join(", "))?;
        if self.0.len() > LABELS_SHOWN { write!(f, " and {} more", self.0.len() - LABELS_SHOWN) } else { Ok(()) }
    }
}
