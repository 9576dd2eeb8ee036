//! Answers that must begin with one of a few texts, or be one of them.

use std::sync::Arc;

use petals_client::Constraint;

use crate::text::Pieces;

/// The texts that an answer may begin with.
#[derive(Debug)]
pub(super) struct Choices {
    texts: Vec<Vec<u8>>,
    /// Whether the answer ends with the text.
    whole: bool,
    stop_tokens: Vec<u32>,
    pieces: Arc<Pieces>,
}

impl Choices {
    /// Of texts; `whole`: the answer is one of them and ends then, by one of `stop_tokens` or by itself.
    pub(super) fn new(texts: Vec<String>, whole: bool, stop_tokens: &[u32], pieces: Arc<Pieces>) -> Self {
        let texts = texts.into_iter().map(String::into_bytes).collect();
        Self { texts, whole, stop_tokens: stop_tokens.to_vec(), pieces }
    }

    /// What is left of each text that the answer may still become. `None` once it is beyond one of them.
    fn rests(&self, generated: &[u32]) -> Option<Vec<&[u8]>> {
        let longest = self.texts.iter().map(Vec::len).max().unwrap_or(0);
        let mut said = Vec::new();
        for &token in generated {
            said.extend(self.pieces.bytes(token));
            if said.len() > longest {
                return None;
            }
        }
        let rests: Vec<&[u8]> = self.texts.iter().filter_map(|text| text.strip_prefix(said.as_slice())).collect();
        (!rests.is_empty()).then_some(rests)
    }

    /// Whether the answer is complete, and nothing may follow.
    pub(super) fn is_complete(&self, generated: &[u32]) -> bool {
        self.whole && self.rests(generated).is_some_and(|rests| rests.iter().all(|rest| rest.is_empty()))
    }
}

impl Constraint for Choices {
    fn allowed(&self, generated: &[u32]) -> Option<Vec<u32>> {
        let rests = self.rests(generated)?;
        let complete = rests.iter().any(|rest| rest.is_empty());
        if complete && !self.whole {
            return None;
        }
        let mut tokens: Vec<u32> = rests.iter().flat_map(|rest| self.pieces.beginnings(rest)).collect();
        if complete {
            tokens.extend(&self.stop_tokens);
        }
        Some(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TextTokenizer;
    use crate::text::tests::word_model;

    fn choices(texts: &[&str], whole: bool) -> Choices {
        let root = word_model();
        let pieces = Arc::new(Pieces::new(Arc::new(TextTokenizer::load(root.path()).unwrap())));
        Choices::new(texts.iter().map(|&text| text.to_owned()).collect(), whole, &[1], pieces)
    }

    #[test]
    fn an_answer_is_led_to_one_of_the_texts() {
        // `a` is 3, `b` 4, `c` 5, and the end token 1.
        let some = choices(&["ab", "abc", "c"], true);
        assert_eq!(some.allowed(&[]), Some(vec![3, 3, 5]));
        assert_eq!(some.allowed(&[3]), Some(vec![4, 4]));
        assert_eq!(some.allowed(&[3, 4]), Some(vec![5, 1]), "it may end here, or go on");
        assert!(!some.is_complete(&[3, 4]) && some.is_complete(&[3, 4, 5]) && some.is_complete(&[5]));
        let begun = choices(&["ab", "c"], false);
        assert_eq!(
            (begun.allowed(&[3]), begun.allowed(&[3, 4]), begun.allowed(&[5, 3, 3])),
            (Some(vec![4]), None, None)
        );
    }
}
