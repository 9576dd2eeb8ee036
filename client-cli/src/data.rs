//! Data files as tokenised examples.
//!
//! | file | task | a line |
//! |---|---|---|
//! | JSON lines | seq-cls | `{"text": …, "label": …}`, the label an integer or a text |
//! | JSON lines | causal-lm | `{"text": …}`, or `{"prompt": …, "completion": …}` with the loss on the completion only |
//! | `.txt` | causal-lm | any text; the whole file is tokenised and cut into chunks of `--max-length` tokens |

use std::path::Path;

use petals_client::{Example, LabelMap, Target, Task, TextRules};

use crate::text::TextTokenizer;

mod batches;
mod error;
mod input_ids;
mod lines;
mod record;
mod tokenise;

pub(crate) use batches::{BatchOrder, BatchPlan};
pub(crate) use error::DataError;
pub(crate) use input_ids::read_input_ids;

/// What is read out of a data file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DataRules<'a> {
    /// The task, which decides on the fields of a line.
    pub(crate) task: Task,
    /// How text becomes tokens.
    pub(crate) text: TextRules,
    /// The classes that labels must be among; `None` takes the classes from the file.
    pub(crate) labels: Option<&'a LabelMap>,
}

/// A data file, tokenised.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dataset {
    /// The examples in file order.
    pub(crate) examples: Vec<Example>,
    /// The classes, for seq-cls.
    pub(crate) labels: Option<LabelMap>,
    /// Lines left out because no token with a loss remained within the maximal length.
    pub(crate) dropped: usize,
}

impl Dataset {
    /// Reads and tokenises a file: plain text if its name ends in `.txt`, JSON lines otherwise.
    ///
    /// # Errors
    /// [`DataError`], with file, line and what is wrong.
    pub(crate) fn load(path: &Path, rules: &DataRules<'_>, tokenizer: &TextTokenizer) -> Result<Self, DataError> {
        let plain = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
        let dataset = match (plain, rules.task) {
            (true, Task::CausalLm) => tokenise::chunks(path, rules, tokenizer)?,
            (true, Task::SeqCls) => return Err(DataError::PlainTextHasNoLabels { path: path.to_owned() }),
            (false, _) => tokenise::lines(path, record::read(path, rules.task)?, rules, tokenizer)?,
        };
        if dataset.examples.is_empty() {
            return Err(DataError::NoExamples { path: path.to_owned(), dropped: dataset.dropped });
        }
        Ok(dataset)
    }

    /// Tokens of each example.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.tokens.len()).collect()
    }

    /// A digest of the examples, by which a resumed run knows its data.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for example in &self.examples {
            let (kind, number) = match example.target {
                Target::NextToken { from } => (0u64, from),
                Target::Class(class) => (1, class),
            };
            for field in [example.tokens.len() as u64, kind, number as u64] {
                hasher.update(&field.to_le_bytes());
            }
            example.tokens.iter().for_each(|token| {
                hasher.update(&token.to_le_bytes());
            });
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

#[cfg(test)]
mod tests;
