//! What can be wrong with one row of a data file.

use std::fmt;

use petals_client::{Label, LabelMap, Task};

/// Longest line or record in bytes. A longer one is not an example but a file without line ends.
pub(super) const MAX_LINE_LEN: usize = 16 << 20;
/// Most labels or columns listed in a message.
const SHOWN: usize = 10;

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Problem {
    /// Longer than [`MAX_LINE_LEN`].
    TooLong,
    /// Not UTF-8 from this byte of the line on.
    NotUtf8(usize),
    /// A zero byte at this place of the line.
    Nul(usize),
    /// Not JSON.
    NotJson(String),
    /// The first line is not JSON, and does not look like it.
    NotJsonAtAll(String),
    /// The beginning of a JSON value that goes over several lines.
    OpenJson(String),
    /// JSON, but not an object.
    NotAnObject,
    /// A column that is there twice.
    Twice(String),
    /// A quotation mark that is open at the end of the file.
    OpenQuote,
    /// A record with more or fewer fields than the header.
    Fields {
        /// Fields of the record.
        got: u64,
        /// Fields of the header.
        header: u64,
    },
    /// None of the columns is there.
    NoColumns {
        /// What is needed.
        task: Task,
        /// What is there.
        has: Vec<String>,
    },
    /// A column is missing.
    Missing {
        /// The column.
        column: String,
        /// What is needed.
        task: Task,
        /// What is there.
        has: Vec<String>,
    },
    /// A field is not a text.
    NotText(String),
    /// A label is null or empty.
    NoLabel(String),
    /// A label that is no class.
    BadLabel {
        /// The column.
        column: String,
        /// The value.
        got: String,
    },
    /// A label is a number with a fraction.
    Fraction {
        /// The column.
        column: String,
        /// The value.
        got: String,
    },
    /// Both kinds of causal-lm rows at once.
    TextAndPrompt,
    /// A prompt in messages and a completion that is a text, or the reverse.
    TextAndMessages {
        /// The column that is a text.
        text: String,
        /// The column with messages.
        messages: String,
    },
    /// Two answers, of which one is better.
    Preferences,
    /// Answers that are good or bad.
    Ratings,
    /// Something beside the messages of a conversation.
    BesideMessages {
        /// The column.
        column: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A label that the classes do not have.
    UnknownLabel(Label, LabelMap),
    /// A number among texts, or the reverse.
    OtherKindOfLabel(Label, Label),
    /// A list of messages that is not one.
    Messages {
        /// The column.
        column: String,
        /// What is wrong.
        problem: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(
                f,
                "the line is longer than {MAX_LINE_LEN} bytes: is a quotation mark open, or are line ends missing?"
            ),
            Self::NotUtf8(at) => write!(f, "the line is not UTF-8 at byte {at}: save the file as UTF-8"),
            Self::Nul(at) => write!(
                f,
                "the line has a zero byte at {at}, which texts have not: is it UTF-16, or another kind of file? Save it as UTF-8"
            ),
            Self::NotJson(error) => write!(f, "the line is not JSON: {error}"),
            Self::NotJsonAtAll(error) => write!(
                f,
                "the line is not JSON: {error}. Files whose names do not end with .csv, .tsv or .txt are read as JSON lines"
            ),
            Self::Twice(name) => write!(f, "the line has `{name}` twice: which one counts?"),
            Self::OpenQuote => f.write_str("a quotation mark that is open here is never closed"),
            Self::OpenJson(error) => write!(
                f,
                "the line is not JSON: {error}. Write one object per line, or one list of objects [{{…}}, {{…}}]"
            ),
            Self::NotAnObject => f.write_str("the line is not a JSON object"),
            Self::Fields { got, header } => {
                write!(f, "the record has {got} fields, the header {header}: is a quotation mark missing?")
            }
            Self::NoColumns { task, has } => {
                write!(f, "no column to learn from: expected {}; the row has {}", expected(*task), list(has))?;
                match suggestion(has) {
                    Some((prompt, completion)) => {
                        write!(f, ": perhaps --prompt-column {prompt} --completion-column {completion}")
                    }
                    None => write!(f, ": {} say which to read", flags(*task)),
                }
            }
            Self::Missing { column, task, has } => write!(
                f,
                "`{column}` is missing: expected {}, or names given by {}; the row has {}",
                expected(*task),
                flags(*task),
                list(has)
            ),
            Self::NotText(column) => write!(f, "`{column}` is not a text"),
            Self::NoLabel(column) => {
                write!(f, "`{column}` is empty: give the row a label, or leave it out of the file")
            }
            Self::BadLabel { column, got } => write!(f, "`{column}` is {got}: expected an integer or a text"),
            Self::Fraction { column, got } => write!(
                f,
                "`{column}` is {got}: expected an integer or a text. Numbers with a fraction are no classes, and regression \
                 is not supported: round them or put them into classes"
            ),
            Self::TextAndPrompt => {
                f.write_str("the line has `text` and `prompt`: give `text`, or `prompt` and `completion`, or say by ")?;
                f.write_str("--text-column or --prompt-column and --completion-column which to read")
            }
            Self::TextAndMessages { text, messages } => write!(
                f,
                "`{text}` is a text and `{messages}` a list of messages: make both the one or the other"
            ),
            Self::Preferences => f.write_str(
                "the row has `chosen` and `rejected`: preferences (DPO, ORPO, reward models) are not learnt here. To learn what was \
                 chosen: --prompt-column prompt --completion-column chosen, or, if it is the whole conversation, `messages` as its name",
            ),
            Self::Ratings => f.write_str(
                "the row has `prompt`, `completion` and a `label` that is true or false: good and bad answers (KTO) are not told apart \
                 here. Leave only the good ones in the file, without `label`; or, to learn all of them, say --prompt-column prompt \
                 --completion-column completion",
            ),
            Self::BesideMessages { column, problem } => write!(f, "`{column}` {problem}"),
            Self::UnknownLabel(label, known) => {
                let known: Vec<String> = known.labels().iter().map(Label::to_string).collect();
                write!(f, "the label {label} is not one of those trained on: {}", list(&known))
            }
            Self::OtherKindOfLabel(label, first) => {
                write!(f, "the label {label} is of another kind than {first} before it: use integers or texts only")
            }
            Self::Messages { column, problem } => write!(f, "`{column}` is not a conversation: {problem}"),
        }
    }
}

fn expected(task: Task) -> &'static str {
    match task {
        Task::CausalLm => {
            r#"{"text": …}, {"prompt": …, "completion": …}, {"instruction": …, "output": …} or {"messages": […]}"#
        }
        Task::SeqCls => r#"{"text": …, "label": …}"#,
    }
}

fn flags(task: Task) -> &'static str {
    match task {
        Task::CausalLm => "--text-column, or --prompt-column and --completion-column",
        Task::SeqCls => "--text-column and --label-column",
    }
}

/// Names that data sets have for questions and their answers.
const PAIRS: [(&str, &str); 8] = [
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
    ("problem", "solution"),
    ("source", "target"),
    ("context", "response"),
];

/// A question and its answer among columns.
fn suggestion(has: &[String]) -> Option<(&'static str, &'static str)> {
    let there = |name: &str| has.iter().any(|column| column.trim_matches('`') == name);
    PAIRS.into_iter().find(|(prompt, completion)| there(prompt) && there(completion))
}

/// The first of some names.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "nothing".to_owned(),
        count if count > SHOWN => format!("{shown} and {} more", count - SHOWN),
        _ => shown,
    }
}
