//! How probable given texts are.

use super::{GenerationError, Generator};
use crate::inference::logprobs::TokenLogprobs;

/// Bytes of logits that are held at a time.
const LOGITS_BYTES: usize = 64 << 20;
/// Rows that are sent at a time at most.
const ROWS: usize = 512;

impl Generator {
    /// How probable each token of `text` is behind those in front of it, from the second one on, each with the `top` most probable tokens of
    /// its place. The text is computed from its start; a call of [`Generator::generate`] for it or for what follows goes on from it.
    ///
    /// # Errors
    /// [`GenerationError`].
    pub async fn score(&mut self, text: &[u32], top: usize) -> Result<Vec<TokenLogprobs>, GenerationError> {
        let Some(last) = text.len().checked_sub(1) else { return Err(GenerationError::Empty) };
        if text.len() > self.max_tokens {
            return Err(GenerationError::TooLong { tokens: text.len(), room: self.max_tokens });
        }
        self.keep(&[]);
        let vocabulary = self.session.vocabulary().max(1);
        let rows = (LOGITS_BYTES / (size_of::<f32>() * vocabulary)).clamp(1, ROWS);
        let mut scores = Vec::with_capacity(last);
        // Behind the last token nothing is asked.
        for (start, part) in (0..last).step_by(rows).zip(text[..last].chunks(rows)) {
            let logits = self.session.append_and_score(&[part.to_vec()]).await?;
            self.tokens.extend_from_slice(part);
            let followers = &text[start + 1..];
            let rows = logits.chunks_exact(vocabulary).zip(followers);
            scores.extend(rows.map(|(logits, &token)| TokenLogprobs::of(logits, token, top)));
        }
        Ok(scores)
    }
}
