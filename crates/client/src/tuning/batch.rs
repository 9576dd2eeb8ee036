//! Examples, and how a batch of them becomes micro-batches.

use std::ops::Range;
use std::sync::Arc;

use petals_model::TopTokens;

/// A tokenised example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids: at least one, for next-token prediction at least two.
    pub tokens: Vec<u32>,
    /// What is to be learnt from it.
    pub target: Target,
}

/// The labels of an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Each token from this index on (at least 1) is predicted from those before it.
    NextToken {
        /// First token with a loss.
        from: usize,
    },
    /// Each token in these ranges, ascending and disjoint, is predicted from those before it: the answers of a conversation.
    /// The first token of a text is not, whatever the ranges say.
    Tokens(Vec<Range<usize>>),
    /// The class of the whole text, predicted at its last token.
    Class(usize),
    /// What a teacher takes for the tokens that the first one names, a row for each of its labels in their order.
    Taught(Box<Target>, Arc<TopTokens>),
}

/// One micro-batch: token rows to embed, output rows to read, a label for each of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct MicroBatch {
    pub(crate) lengths: Vec<u32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) read_rows: Vec<u32>,
    pub(crate) labels: Vec<u32>,
    /// What a teacher takes for the labels, if there was one.
    pub(crate) taught: Option<TopTokens>,
}

impl Target {
    /// What is predicted, whoever says what it is.
    pub fn plain(&self) -> &Self {
        match self {
            Self::Taught(plain, _) => plain,
            plain => plain,
        }
    }
}

impl Example {
    /// Tokens that go through the blocks. What comes behind the last prediction is not needed: nothing before it depends on
    /// it. So the last token of a text, which has no successor, never is.
    pub(crate) fn input_len(&self) -> usize {
        match self.target.plain() {
            Target::NextToken { .. } => self.tokens.len().saturating_sub(1),
            Target::Tokens(_) | Target::Taught(..) => {
                self.predicted().last().map_or(0, |span| span.end.saturating_sub(1))
            }
            Target::Class(_) => self.tokens.len(),
        }
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        match self.target.plain() {
            Target::NextToken { .. } | Target::Tokens(_) | Target::Taught(..) => {
                self.predicted().map(|span| span.len()).sum()
            }
            Target::Class(_) => usize::from(!self.tokens.is_empty()),
        }
    }

    /// Where tokens are predicted, without ranges that are empty.
    fn predicted(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.tokens.len();
        let (from, spans) = match self.target.plain() {
            Target::NextToken { from } => (Some(*from..end), [].as_slice()),
            Target::Tokens(spans) => (None, spans.as_slice()),
            Target::Class(_) | Target::Taught(..) => (None, [].as_slice()),
        };
        let all = from.into_iter().chain(spans.iter().cloned());
        all.map(move |span| span.start.max(1)..span.end.min(end)).filter(|span| !span.is_empty())
    }
}

impl MicroBatch {
    /// Packs examples. Those without a label are left out.
    pub(crate) fn new(examples: &[Example]) -> Self {
        let mut batch = Self::default();
        for example in examples.iter().filter(|example| example.labels() > 0) {
            let offset = batch.tokens.len();
            let input = &example.tokens[..example.input_len()];
            if let Target::Taught(_, top) = &example.target {
                batch.taught.get_or_insert_default().append(top);
            }
            match example.target.plain() {
                Target::NextToken { .. } | Target::Tokens(_) | Target::Taught(..) => {
                    for at in example.predicted().flatten() {
                        batch.read_rows.push((offset + at - 1) as u32);
                        batch.labels.push(example.tokens[at]);
                    }
                }
                Target::Class(class) => {
                    batch.read_rows.push((offset + input.len() - 1) as u32);
                    batch.labels.push(*class as u32);
                }
            }
            batch.lengths.push(input.len() as u32);
            batch.tokens.extend_from_slice(input);
        }
        batch
    }
}

/// Splits a batch into runs of consecutive examples of at most `max_tokens` tokens each. An example longer than that goes
/// alone.
pub(crate) fn micro_batches(examples: &[Example], max_tokens: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (at, example) in examples.iter().enumerate() {
        let len = example.input_len();
        if at > start && tokens + len > max_tokens {
            ranges.push(start..at);
            (start, tokens) = (at, 0);
        }
        tokens += len;
    }
    if start < examples.len() {
        ranges.push(start..examples.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tokens: &[u32], from: usize) -> Example {
        Example { tokens: tokens.to_vec(), target: Target::NextToken { from } }
    }

    #[test]
    fn next_tokens_are_read_one_row_before_them() {
        let batch = MicroBatch::new(&[text(&[5, 6, 7], 1), text(&[8, 9, 10, 11], 3)]);
        assert_eq!(batch.lengths, [2, 3]);
        assert_eq!(batch.tokens, [5, 6, 8, 9, 10]);
        assert_eq!((batch.read_rows, batch.labels), (vec![0, 1, 4], vec![6, 7, 11]));
    }

    #[test]
    fn answers_in_the_middle_are_read_and_what_follows_the_last_one_is_not_computed() {
        let target = |spans: &[(usize, usize)]| Target::Tokens(spans.iter().map(|&(start, end)| start..end).collect());
        let talk = Example { tokens: (5..13).collect(), target: target(&[(0, 2), (3, 5), (6, 7)]) };
        assert_eq!((talk.labels(), talk.input_len()), (4, 6));
        let batch = MicroBatch::new(&[talk, text(&[1, 2], 1)]);
        assert_eq!(batch.lengths, [6, 1]);
        assert_eq!((batch.read_rows, batch.labels), (vec![0, 2, 3, 5, 6], vec![6, 8, 9, 11, 2]));
        let cut = Example { tokens: vec![5, 6, 7], target: target(&[(1, 2), (2, 9), (20, 30)]) };
        assert_eq!((cut.labels(), cut.input_len()), (2, 2));
        let none = Example { tokens: vec![5, 6, 7], target: target(&[(0, 1)]) };
        assert_eq!((none.labels(), none.input_len()), (0, 0));
    }

    #[test]
    fn classes_are_read_at_the_last_token() {
        let class = |tokens: &[u32], class| Example { tokens: tokens.to_vec(), target: Target::Class(class) };
        let batch = MicroBatch::new(&[class(&[5, 6], 1), class(&[7], 0)]);
        assert_eq!((batch.lengths, batch.read_rows, batch.labels), (vec![2, 1], vec![1, 2], vec![1, 0]));
    }

    #[test]
    fn examples_without_labels_are_left_out() {
        let batch = MicroBatch::new(&[text(&[5], 1), text(&[6, 7], 2), text(&[8, 9], 0)]);
        assert_eq!((batch.lengths, batch.tokens, batch.labels), (vec![1], vec![8], vec![9]));
    }

    #[test]
    fn a_batch_splits_by_tokens_and_keeps_its_order() {
        let examples: Vec<_> = [4, 4, 2, 9, 1].map(|n| text(&vec![0; n + 1], 1)).into();
        assert_eq!(micro_batches(&examples, 8), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(micro_batches(&examples, 1000).first(), Some(&(0..5)));
        assert_eq!(micro_batches(&examples, 1).len(), 5);
        assert!(micro_batches(&[], 8).is_empty());
    }
}
