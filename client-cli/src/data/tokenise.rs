//! Records and plain text as tokenised examples.

use std::path::Path;

use petals_client::{Example, Label, LabelMap, Target};

use super::error::{DataError, LineProblem};
use super::record::{Numbered, Record};
use super::{DataRules, Dataset, lines as text_lines};
use crate::text::{TextError, TextTokenizer};

/// Tokenises records. Those that keep no token with a loss within the maximal length are left out and counted.
pub(super) fn lines(
    path: &Path,
    records: Vec<Numbered>,
    rules: &DataRules<'_>,
    tokenizer: &TextTokenizer,
) -> Result<Dataset, DataError> {
    let labels = label_map(path, &records, rules)?;
    let mut dataset = Dataset { examples: Vec::with_capacity(records.len()), labels, dropped: 0 };
    for (line, record) in records {
        let target = |label: &Label| class_of(path, line, label, dataset.labels.as_ref());
        let tokenised = tokenise(&record, rules, tokenizer);
        let (mut tokens, from) = tokenised.map_err(|source| DataError::Tokenise { path: path.to_owned(), source })?;
        let target = match &record {
            Record::Labelled { label, .. } => Target::Class(target(label)?),
            Record::Text(_) | Record::Completion { .. } => Target::NextToken { from },
        };
        tokens.truncate(rules.text.max_length.unwrap_or(usize::MAX));
        let example = Example { tokens, target };
        if example.labels() > 0 { dataset.examples.push(example) } else { dataset.dropped += 1 }
    }
    Ok(dataset)
}

/// Tokenises a whole file and cuts it into chunks of the maximal length (or one chunk without).
pub(super) fn chunks(path: &Path, rules: &DataRules<'_>, tokenizer: &TextTokenizer) -> Result<Dataset, DataError> {
    let text = text_lines::whole(path)?;
    let mut dataset = Dataset { examples: Vec::new(), labels: None, dropped: 0 };
    if text.trim().is_empty() {
        return Ok(dataset);
    }
    let tokenised = tokenise(&Record::Text(text), rules, tokenizer);
    let (tokens, from) = tokenised.map_err(|source| DataError::Tokenise { path: path.to_owned(), source })?;
    for chunk in tokens.chunks(rules.text.max_length.unwrap_or(usize::MAX).max(1)) {
        let example = Example { tokens: chunk.to_vec(), target: Target::NextToken { from } };
        if example.labels() > 0 { dataset.examples.push(example) } else { dataset.dropped += 1 }
    }
    Ok(dataset)
}

/// Tokens of a record, not cut yet, and the first one with a loss: the second of a text, since nothing precedes the first,
/// and the first of a completion.
fn tokenise(record: &Record, rules: &DataRules<'_>, tokenizer: &TextTokenizer) -> Result<(Vec<u32>, usize), TextError> {
    let (mut tokens, from) = match record {
        Record::Text(text) | Record::Labelled { text, .. } => (tokenizer.encode(text)?, 1),
        Record::Completion { prompt, completion } => {
            let mut tokens = tokenizer.encode(prompt)?;
            let from = tokens.len();
            tokens.extend(tokenizer.encode_continuation(completion)?);
            (tokens, from)
        }
    };
    if rules.text.append_eos {
        tokens.push(tokenizer.eos()?);
    }
    Ok((tokens, from.max(1)))
}

/// The given classes, or those of the records; `None` for records without labels.
fn label_map(path: &Path, records: &[Numbered], rules: &DataRules<'_>) -> Result<Option<LabelMap>, DataError> {
    let labels: Vec<Label> = records
        .iter()
        .filter_map(|(_, record)| match record {
            Record::Labelled { label, .. } => Some(label.clone()),
            Record::Text(_) | Record::Completion { .. } => None,
        })
        .collect();
    match rules.labels {
        _ if labels.is_empty() => Ok(None),
        Some(known) => Ok(Some(known.clone())),
        None => LabelMap::from_labels(labels)
            .map(Some)
            .map_err(|source| DataError::Labels { path: path.to_owned(), source }),
    }
}

fn class_of(path: &Path, line: usize, label: &Label, known: Option<&LabelMap>) -> Result<usize, DataError> {
    let class = known.and_then(|known| known.class_of(label));
    class.ok_or_else(|| {
        let problem = match known {
            Some(known) => LineProblem::UnknownLabel(label.clone(), known.clone()),
            None => LineProblem::BadLabel(label.to_string()),
        };
        DataError::Line { path: path.to_owned(), line, problem }
    })
}
