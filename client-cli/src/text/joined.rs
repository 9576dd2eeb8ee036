//! Texts of several parts, tokenised as one, and which tokens belong to which part.

use std::ops::Range;

use tokenizers::Encoding;

use super::{TextError, TextTokenizer};

impl TextTokenizer {
    /// Tokens of a prompt and what follows it, tokenised as the one text that they are, and the number of tokens in front of
    /// the completion: those that the prompt alone begins with. A token that reaches over the border is the completion's, as in
    /// TRL (`SFTTrainer`, `common_prefix_length`): it cannot be known from the prompt.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub(crate) fn encode_joined(&self, prompt: &str, completion: &str) -> Result<(Vec<u32>, usize), TextError> {
        let tokens = self.encode(&format!("{prompt}{completion}"))?;
        let alone = self.encode(prompt)?;
        let border = tokens.iter().zip(&alone).take_while(|(ours, theirs)| ours == theirs).count();
        Ok((tokens, border))
    }

    /// Tokens of a text to which nothing is added, and for each part of it, given in bytes, its tokens: all that have
    /// anything of it, as transformers marks what an assistant said.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub(crate) fn encode_spans(
        &self,
        text: &str,
        parts: &[Range<usize>],
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), TextError> {
        let encoding = self.tokenizer.encode(text, false).map_err(TextError::Encode)?;
        let mut spans: Vec<Range<usize>> = Vec::new();
        for part in parts {
            let mut span = tokens_of(&encoding, part);
            // A token that two parts share is counted once.
            span.start = span.start.max(spans.last().map_or(0, |before| before.end));
            if !span.is_empty() {
                spans.push(span);
            }
        }
        Ok((encoding.get_ids().to_vec(), spans))
    }
}

/// The tokens that have anything of these bytes. Tokenizers leave space out of what a token covers, so it belongs to the first
/// token that ends behind it.
fn tokens_of(encoding: &Encoding, part: &Range<usize>) -> Range<usize> {
    let (mut reach, mut tokens) = (0, 0..0);
    for (at, &(start, end)) in encoding.get_offsets().iter().enumerate() {
        let before = reach;
        reach = end.max(before);
        if reach > part.start && (start < part.end || before < part.end) {
            if tokens.is_empty() {
                tokens.start = at;
            }
            tokens.end = at + 1;
        }
    }
    tokens
}
