//! Records and plain text as tokenised examples.

use std::path::Path;

use petals_client::{Example, Label, LabelMap, Target};

use super::conversation::Conversation;
use super::counts::Counts;
use super::error::{DataError, Place};
use super::problem::Problem;
use super::record::{Record, Records};
use super::{DataRules, Dataset};
use crate::text::{TextError, TextTokenizer};

/// Most classes of a classifier. Each takes a row of the score head; data with more have other labels than classes.
const MAX_CLASSES: usize = 10_000;

/// Examples that grow, are cut and counted.
struct Examples<'a> {
    path: &'a Path,
    rules: &'a DataRules<'a>,
    tokenizer: &'a TextTokenizer,
    examples: Vec<Example>,
    counts: Counts,
    digest: blake3::Hasher,
}

/// Tokenises records. Those that keep no token with a loss within the maximal length are left out and counted.
pub(super) fn records(
    path: &Path,
    read: Records,
    rules: &DataRules<'_>,
    tokenizer: &TextTokenizer,
) -> Result<Dataset, DataError> {
    let labels = label_map(path, &read, rules)?;
    let mut examples = Examples::new(path, rules, tokenizer, read.counts);
    for (place, record) in read.records {
        examples.record(place, record, labels.as_ref())?;
    }
    Ok(examples.finish(labels))
}

/// Tokenises the text of a whole file and cuts it into windows of the maximal length (or one window without).
pub(super) fn windows(
    path: &Path,
    text: &str,
    rules: &DataRules<'_>,
    tokenizer: &TextTokenizer,
) -> Result<Dataset, DataError> {
    let mut examples = Examples::new(path, rules, tokenizer, Counts::default());
    if text.trim().is_empty() {
        return Ok(examples.finish(None));
    }
    let place = Place::Line(1);
    let tokens = tokenizer.encode(text).and_then(|tokens| examples.ended(tokens));
    let tokens = tokens.map_err(|source| DataError::Tokenise { path: path.to_owned(), place, source })?;
    let target = Target::NextToken { from: 1 };
    let whole = Example { tokens, target: target.clone() };
    examples.check(place, &whole)?;
    update(&mut examples.digest, &whole);
    for window in whole.tokens.chunks(rules.text.max_length.unwrap_or(usize::MAX).max(1)) {
        examples.counts.rows += 1;
        examples.keep(Example { tokens: window.to_vec(), target: target.clone() });
    }
    Ok(examples.finish(None))
}

impl<'a> Examples<'a> {
    fn new(path: &'a Path, rules: &'a DataRules<'a>, tokenizer: &'a TextTokenizer, counts: Counts) -> Self {
        Self { path, rules, tokenizer, examples: Vec::new(), counts, digest: blake3::Hasher::new() }
    }

    fn finish(self, labels: Option<LabelMap>) -> Dataset {
        let digest = self.digest.finalize().to_hex()[..16].to_owned();
        Dataset { examples: self.examples, labels, counts: self.counts, digest }
    }

    fn record(&mut self, place: Place, record: Record, labels: Option<&LabelMap>) -> Result<(), DataError> {
        let failed = |source| DataError::Tokenise { path: self.path.to_owned(), place, source };
        let (tokens, target) = match record {
            Record::Text(text) => (self.tokenizer.encode(&text).map_err(failed)?, Target::NextToken { from: 1 }),
            Record::Labelled { text, label } => {
                let class = self.class_of(place, &label, labels)?;
                (self.tokenizer.encode(&text).map_err(failed)?, Target::Class(class))
            }
            Record::Completion { prompt, completion } => {
                let (tokens, border) = self.tokenizer.encode_joined(&prompt, &completion).map_err(failed)?;
                // Nothing precedes the first token, so it cannot be predicted.
                (tokens, Target::NextToken { from: border.max(1) })
            }
            Record::Talk(conversation) => return self.talk(place, &conversation),
        };
        let tokens = self.ended(tokens).map_err(failed)?;
        self.add(place, Example { tokens, target })
    }

    /// With the end-of-sequence token, if it is to be appended and is not there.
    fn ended(&self, mut tokens: Vec<u32>) -> Result<Vec<u32>, TextError> {
        if self.rules.text.append_eos {
            let eos = self.tokenizer.eos()?;
            if tokens.last() != Some(&eos) {
                tokens.push(eos);
            }
        }
        Ok(tokens)
    }

    /// A conversation as the template renders it. Templates write all special tokens themselves, so nothing is added.
    fn talk(&mut self, place: Place, talk: &Conversation) -> Result<(), DataError> {
        let refused = |source| DataError::Conversation { path: self.path.to_owned(), place, source };
        let template = self.rules.templates.get().map_err(|error| refused(error.into()))?;
        let rendered = talk.rendered(template).map_err(refused)?;
        self.counts.split_conversations += usize::from(rendered.len() > 1);
        if rendered.is_empty() {
            self.counts.without_label += 1;
        }
        for rendered in rendered {
            let encoded = self.tokenizer.encode_spans(&rendered.text, &rendered.answers);
            let (tokens, spans) =
                encoded.map_err(|source| DataError::Tokenise { path: self.path.to_owned(), place, source })?;
            self.add(place, Example { tokens, target: Target::Tokens(spans) })?;
        }
        Ok(())
    }

    /// Checks an example, cuts it, and keeps it if anything is left to learn.
    fn add(&mut self, place: Place, mut example: Example) -> Result<(), DataError> {
        self.check(place, &example)?;
        if example.labels() > 0 {
            update(&mut self.digest, &example);
        }
        let most = self.rules.text.max_length.unwrap_or(usize::MAX);
        self.counts.cut += usize::from(example.tokens.len() > most);
        self.counts.longest = self.counts.longest.max(example.tokens.len());
        example.tokens.truncate(most);
        self.keep(example);
        Ok(())
    }

    fn keep(&mut self, example: Example) {
        self.counts.longest = self.counts.longest.max(example.tokens.len());
        if example.labels() > 0 { self.examples.push(example) } else { self.counts.without_label += 1 }
    }

    fn check(&self, place: Place, example: &Example) -> Result<(), DataError> {
        let vocab_size = self.rules.vocab_size;
        match example.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(DataError::BeyondVocabulary { path: self.path.to_owned(), place, token, vocab_size }),
            None => Ok(()),
        }
    }

    fn class_of(&self, place: Place, label: &Label, known: Option<&LabelMap>) -> Result<usize, DataError> {
        let class = known.and_then(|known| known.class_of(label));
        class.ok_or_else(|| {
            let problem = match known {
                Some(known) => Problem::UnknownLabel(label.clone(), known.clone()),
                None => Problem::BadLabel { column: "label".to_owned(), got: label.to_string() },
            };
            DataError::Row { path: self.path.to_owned(), place, problem }
        })
    }
}

/// The given classes, or those of the records; `None` for records without labels.
fn label_map(path: &Path, read: &Records, rules: &DataRules<'_>) -> Result<Option<LabelMap>, DataError> {
    let labels: Vec<Label> = read.records.iter().filter_map(|(_, record)| record.label().cloned()).collect();
    let Some(first) = labels.first() else { return Ok(None) };
    if let Some(known) = rules.labels {
        return Ok(Some(known.clone()));
    }
    if labels.iter().all(|label| label == first) {
        return Err(DataError::OneClass { path: path.to_owned(), label: first.clone() });
    }
    let failed = |source| DataError::Labels { path: path.to_owned(), source };
    let map = LabelMap::from_labels(labels).map_err(failed)?;
    if map.len() > MAX_CLASSES {
        return Err(DataError::TooManyClasses { path: path.to_owned(), classes: map.len(), most: MAX_CLASSES });
    }
    Ok(Some(map))
}

/// Adds an example to a digest.
fn update(digest: &mut blake3::Hasher, example: &Example) {
    let (kind, numbers) = match example.target.plain() {
        Target::NextToken { from } => (0u64, vec![*from]),
        Target::Class(class) => (1, vec![*class]),
        Target::Tokens(spans) => (2, spans.iter().flat_map(|span| [span.start, span.end]).collect()),
        // Nobody teaches before the data is read.
        Target::Taught(..) => (3, Vec::new()),
    };
    let head = [example.tokens.len() as u64, kind].into_iter().chain(numbers.into_iter().map(|number| number as u64));
    head.for_each(|field| {
        digest.update(&field.to_le_bytes());
    });
    example.tokens.iter().for_each(|token| {
        digest.update(&token.to_le_bytes());
    });
}
