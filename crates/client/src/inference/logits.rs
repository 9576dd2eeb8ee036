//! Plain forward passes: logits of given tokens.

use std::sync::Arc;

use petals_model::{ClientModel, HeadError};

use super::head::{SharedHead, UnderWay};
use crate::adapter::tables::PromptTables;
use crate::sequence::{PassInput, RemoteSequence, SequenceError};

/// Why logits could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogitsError {
    /// The pass through the swarm failed.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The local part failed.
    #[error(transparent)]
    Model(#[from] HeadError),
    /// A local computation was stopped.
    #[error("a local computation failed")]
    Local,
}

/// A model whose blocks are in the swarm, with or without trained prompts.
#[derive(Debug, Clone)]
pub struct RemoteModel {
    /// The blocks.
    pub sequence: Arc<RemoteSequence>,
    /// Embeddings, norm and head.
    pub local: Arc<ClientModel>,
    /// What is in front of the text and beside the weights, if anything.
    pub tables: Option<Arc<PromptTables>>,
    /// Whose texts these are, among the users of this client.
    pub(crate) cache_salt: u32,
    /// One for all clones.
    head: Arc<SharedHead>,
}

impl RemoteModel {
    /// A model without prompts. Texts of its clones that need the head at the same time share the work.
    pub fn new(sequence: Arc<RemoteSequence>, local: Arc<ClientModel>) -> Self {
        let head = Arc::new(SharedHead::new(local.clone()));
        Self { sequence, local, tables: None, cache_salt: 0, head }
    }

    /// The same model with other prompts in front, or none.
    #[must_use]
    pub fn with_tables(self, tables: Option<Arc<PromptTables>>) -> Self {
        let tables = tables.map(|tables| tables.entered(&self.local));
        Self { tables, ..self }
    }

    /// The same model for one of several users: what servers keep of how sessions begin is for those with the same salt alone. With 0 it is for all
    /// of this client's, and for other clients' where a server shares among them.
    #[must_use]
    pub fn with_cache_salt(self, cache_salt: u32) -> Self {
        Self { cache_salt, ..self }
    }

    /// Hidden states behind the last block (before the final norm) of every text row, `[tokens, hidden]`, packed like
    /// the rows of `texts`.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn hidden_states(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>, LogitsError> {
        self.pass(texts, None).await
    }

    /// Logits of every position, `[tokens, vocab]`, packed like the rows of `texts`.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn logits(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>, LogitsError> {
        let hidden = self.pass(texts, None).await?;
        self.head(hidden, None).await
    }

    /// Hidden states behind the final norm, of every text row or of each text's last one, `[rows, hidden]`.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn final_states(&self, texts: &[Vec<u32>], last: bool) -> Result<Vec<f32>, LogitsError> {
        let hidden = self.pass(texts, last.then(|| last_rows(texts))).await?;
        let local = self.local.clone();
        let normed = tokio::task::spawn_blocking(move || local.final_norm(&hidden)).await;
        Ok(normed.map_err(|_| LogitsError::Local)??)
    }

    /// Logits of each text's last position, `[texts, vocab]`.
    ///
    /// # Errors
    /// [`LogitsError`].
    pub async fn next_token_logits(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>, LogitsError> {
        let hidden = self.pass(texts, Some(last_rows(texts))).await?;
        self.head(hidden, None).await
    }

    async fn pass(&self, texts: &[Vec<u32>], read_rows: Option<Vec<u32>>) -> Result<Vec<f32>, LogitsError> {
        let tokens: Vec<u32> = texts.concat();
        let input = PassInput {
            lengths: texts.iter().map(|text| text.len() as u32).collect(),
            text: self.local.embed(&tokens)?,
            read_rows,
            tables: self.tables.clone(),
        };
        Ok(self.sequence.forward(input, false).await?.0)
    }

    /// A step of a session begins, of so many rows; [`Self::head`] is going to be asked for its logits.
    pub(crate) fn begin(&self, rows: usize) -> Option<UnderWay> {
        self.head.begin(rows)
    }

    pub(crate) async fn head(&self, hidden: Vec<f32>, step: Option<UnderWay>) -> Result<Vec<f32>, LogitsError> {
        Ok(self.head.logits(hidden, step).await.ok_or(LogitsError::Local)??)
    }
}

/// The last row of each text.
fn last_rows(texts: &[Vec<u32>]) -> Vec<u32> {
    let mut end = 0;
    let last = texts.iter().map(|text| {
        end += text.len() as u32;
        end.saturating_sub(1)
    });
    last.collect()
}
