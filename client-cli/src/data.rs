//! Data files as tokenised examples.
//!
//! | file | what it is |
//! |---|---|
//! | `.txt` | any text, for causal-lm: the whole file is tokenised and cut into windows of `--max-length` tokens |
//! | `.csv`, `.tsv` | a header with the names of the columns, and a record for each example |
//! | any other | JSON lines, an object for each example, or one JSON list of objects |
//!
//! Each of them may be compressed by gzip, and `-` is standard input. What the columns mean is in `columns`; `input` opens files,
//! `source` reads rows of any format, `record` makes of a row what is to be learnt, `tokenise` the tokens of it.

use std::path::Path;

use petals_client::{Example, LabelMap, Target, Task, TextRules};

use crate::text::TextTokenizer;

mod batches;
mod columns;
mod conversation;
mod counts;
mod error;
mod input;
mod input_ids;
mod label;
mod lines;
mod problem;
mod record;
mod source;
mod templates;
mod tokenise;
mod tools;

pub(crate) use batches::{BatchOrder, BatchPlan};
pub(crate) use columns::Columns;
pub(crate) use counts::Counts;
pub(crate) use error::DataError;
pub(crate) use input_ids::read_input_ids;
use source::{Format, Source};
pub(crate) use templates::Templates;

/// What is read out of a data file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DataRules<'a> {
    /// The task, which decides on the columns.
    pub(crate) task: Task,
    /// How text becomes tokens.
    pub(crate) text: TextRules,
    /// The classes that labels must be among; `None` takes the classes from the file.
    pub(crate) labels: Option<&'a LabelMap>,
    /// Columns with names of their own.
    pub(crate) columns: &'a Columns,
    /// The model's chat template, for conversations.
    pub(crate) templates: &'a Templates,
    /// Tokens that the model knows: a tokenizer of another model may make others.
    pub(crate) vocab_size: usize,
}

/// A data file, tokenised.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dataset {
    /// The examples in file order.
    pub(crate) examples: Vec<Example>,
    /// The classes, for seq-cls.
    pub(crate) labels: Option<LabelMap>,
    /// What became of the rows.
    pub(crate) counts: Counts,
    /// A digest of the examples as they are before anything is cut, by which a resumed run knows its data.
    pub(crate) digest: String,
}

impl Dataset {
    /// Reads and tokenises a file, in the format that its name and its first bytes say; `-` is standard input.
    ///
    /// # Errors
    /// [`DataError`], with file, line and what is wrong.
    pub(crate) fn load(path: &Path, rules: &DataRules<'_>, tokenizer: &TextTokenizer) -> Result<Self, DataError> {
        let source = Source::open(path)?;
        let dataset = match (source.format(), rules.task) {
            (Format::PlainText, Task::CausalLm) => tokenise::windows(path, &source.text()?, rules, tokenizer)?,
            (Format::PlainText, Task::SeqCls) => {
                return Err(DataError::PlainTextHasNoLabels { path: path.to_owned() });
            }
            _ => tokenise::records(path, record::read(source, rules)?, rules, tokenizer)?,
        };
        if dataset.examples.is_empty() {
            return Err(DataError::NoExamples { path: path.to_owned(), counts: dataset.counts });
        }
        Ok(dataset)
    }

    /// Tokens of each example.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.tokens.len()).collect()
    }

    /// Examples of each class, in the order of the classes; empty without classes.
    pub(crate) fn of_each_class(&self) -> Vec<usize> {
        let mut counts = vec![0; self.labels.as_ref().map_or(0, LabelMap::len)];
        for example in &self.examples {
            if let Target::Class(class) = example.target
                && let Some(count) = counts.get_mut(class)
            {
                *count += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests;
