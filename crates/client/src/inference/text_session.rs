//! Tokens in, logits out, with what came before kept on the servers.

use super::logits::{LogitsError, RemoteModel};
use super::session::InferenceSession;
use crate::planner::Hop;
use crate::sequence::HopTiming;

/// An [`InferenceSession`] with embeddings in front and the head behind.
#[derive(Debug)]
pub struct TextSession {
    model: RemoteModel,
    session: InferenceSession,
}

impl TextSession {
    /// A session of `sequences` empty texts that may grow to `max_tokens` tokens each.
    pub fn new(model: RemoteModel, sequences: usize, max_tokens: usize) -> Self {
        let (sequence, tables) = (model.sequence.clone(), model.tables.clone());
        let session = InferenceSession::new(sequence, tables, model.cache_salt, sequences, max_tokens);
        Self { model, session }
    }

    /// Tokens that the model knows.
    pub(crate) fn vocabulary(&self) -> usize {
        self.model.local.config().vocab_size
    }

    /// Tokens of each text.
    pub fn lengths(&self) -> &[usize] {
        self.session.lengths()
    }

    /// The hops of the last step and how long each took.
    pub fn timings(&self) -> &[(Hop, HopTiming)] {
        self.session.timings()
    }

    /// Forgets what is behind the first `lengths[i]` tokens of text `i`.
    pub fn rollback(&mut self, lengths: &[usize]) {
        self.session.rollback(lengths);
    }

    /// Text `i` goes on from what text `order[i]` was.
    pub fn reorder(&mut self, order: &[u32]) {
        self.session.reorder(order);
    }

    /// Appends tokens to each text (none is allowed), and returns the logits behind the last new token of each that got some,
    /// `[texts with tokens, vocab]`.
    ///
    /// # Errors
    /// [`LogitsError`]; the texts are then as before.
    pub async fn append(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<f32>, LogitsError> {
        let mut end = 0;
        let last = tokens.iter().filter(|tokens| !tokens.is_empty()).map(|tokens| {
            end += tokens.len() as u32;
            end - 1
        });
        let read: Vec<u32> = last.collect();
        self.append_and_read(tokens, &read).await
    }

    /// As [`Self::append`], with the logits behind every new token, `[new tokens, vocab]`.
    ///
    /// # Errors
    /// [`LogitsError`]; the texts are then as before.
    pub async fn append_and_score(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<f32>, LogitsError> {
        let count: usize = tokens.iter().map(Vec::len).sum();
        self.append_and_read(tokens, &(0..count as u32).collect::<Vec<_>>()).await
    }

    /// As [`Self::append`], with the logits behind those new tokens that `read` names, counted over all texts and ascending, `[read,
    /// vocab]`.
    ///
    /// # Errors
    /// [`LogitsError`]; the texts are then as before.
    pub async fn append_and_read(&mut self, tokens: &[Vec<u32>], read: &[u32]) -> Result<Vec<f32>, LogitsError> {
        if read.is_empty() {
            return Ok(Vec::new());
        }
        let text = self.model.local.embed(&tokens.concat())?;
        let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
        let under_way = self.model.begin(lengths.iter().sum());
        let hidden = self.session.step(&text, &lengths, read).await?;
        self.model.head(hidden, under_way).await
    }
}
