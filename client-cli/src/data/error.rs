//! What can be wrong with a data file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use petals_client::{Label, LabelError};

use super::counts::Counts;
use super::problem::Problem;
use crate::chat::AnswerError;
use crate::text::TextError;

/// Where in a file something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line, counted from 1.
    Line(usize),
    /// An item of a list, counted from 1.
    Item(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => line.fmt(f),
            Self::Item(item) => write!(f, "item {item}"),
        }
    }
}

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
    /// It has another format.
    #[error("{} is {what}: {remedy}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It is longer than what is read.
    #[error("{} has more than {most} bytes, which is the most that is read at once: split it", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes.
        most: u64,
    },
    /// It is a folder.
    #[error(
        "{} is a folder: give one file. Those in it can be read as one: cat {}/*.jsonl | petals-tune … --data -",
        path.display(), path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// It is not there, and looks like a pattern for several.
    #[error(
        "there is no file {}, and patterns are not expanded here. Several files can be read as one: cat {} | petals-tune … --data -",
        path.display(), path.display()
    )]
    Pattern {
        /// The pattern.
        path: PathBuf,
    },
    /// It is compressed, and cannot be unpacked.
    #[error(
        "{} is compressed by gzip, and damaged or cut off: make or download it again (gzip -t tests it)", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is compressed, and becomes longer than what is read.
    #[error(
        "{} has more than {most} bytes when it is unpacked, which is the most that is read of an archive: split it",
        path.display()
    )]
    UnpacksTooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes.
        most: u64,
    },
    /// Its header names the columns wrongly.
    #[error("{}: the header {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A JSON list is malformed.
    #[error("{} is not a JSON list of objects", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// One row is wrong.
    #[error("{}:{place}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which.
        place: Place,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A text cannot be tokenised.
    #[error("{}:{place}: the text cannot be tokenised", path.display())]
    Tokenise {
        /// The file.
        path: PathBuf,
        /// Which row.
        place: Place,
        /// Why.
        source: TextError,
    },
    /// A conversation cannot be made a text with known answers.
    #[error("{}:{place}: the conversation cannot be used", path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// Which row.
        place: Place,
        /// Why.
        source: AnswerError,
    },
    /// The tokenizer makes tokens that the model does not know.
    #[error(
        "{}:{place}: the tokenizer makes token {token} of the text, but the model's vocabulary has {vocab_size} entries: \
         is tokenizer.json that of this model?", path.display()
    )]
    BeyondVocabulary {
        /// The file.
        path: PathBuf,
        /// Which row.
        place: Place,
        /// The token.
        token: u32,
        /// Tokens that the model knows.
        vocab_size: usize,
    },
    /// Nothing to learn from.
    #[error("{} has no usable examples ({counts})", path.display())]
    NoExamples {
        /// The file.
        path: PathBuf,
        /// What became of its rows.
        counts: Counts,
    },
    /// The labels are not classes.
    #[error("the labels in {} cannot be used", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LabelError,
    },
    /// Nothing to tell apart.
    #[error("all labels in {} are {label}: a classifier needs at least two different ones", path.display())]
    OneClass {
        /// The file.
        path: PathBuf,
        /// The label.
        label: Label,
    },
    /// More classes than a classifier has.
    #[error(
        "the labels in {} are {classes} different ones, more than the {most} classes that a score head can have here: are they \
         values to be predicted? Regression is not supported", path.display()
    )]
    TooManyClasses {
        /// The file.
        path: PathBuf,
        /// Different labels.
        classes: usize,
        /// Most of them.
        most: usize,
    },
    /// A text file for classification.
    #[error(
        "{} is plain text, which has no labels: seq-cls needs rows with `text` and `label`, as JSON lines or CSV",
        path.display()
    )]
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
