//! Blocks that this client runs itself, beside those of servers.

use std::path::Path;
use std::sync::Arc;

use petals_model::{BlockStack, Checkpoint, CheckpointError, Device, Dtype, PassError};
use petals_protocol::Span;
use tokio::sync::Semaphore;

/// Blocks of this client's own, the first ones of a model.
#[derive(Debug)]
pub struct LocalBlocks {
    stack: Arc<BlockStack>,
    /// One pass at a time: each takes all processors.
    turn: Semaphore,
}

/// Why blocks cannot be run here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalBlocksError {
    /// Others than the first ones, or all of them.
    #[error(
        "this client can run the first blocks, at most all but the last of {blocks}: 0..1 to 0..{}, not {asked}",
        blocks.saturating_sub(1)
    )]
    Span {
        /// What was asked for.
        asked: Span,
        /// How many the model has.
        blocks: usize,
    },
    /// Their weights are not here, or cannot be read.
    #[error("cannot load the blocks {span} that are to run here")]
    Checkpoint {
        /// Which.
        span: Span,
        /// What is wrong.
        source: Box<CheckpointError>,
    },
}

/// Why a pass through them failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// It makes no sense, or overflowed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The computation ended without a result.
    #[error("the computation stopped")]
    Stopped,
}

impl LocalBlocks {
    /// Loads blocks on this machine's processor, their weights kept in `dtype`.
    ///
    /// # Errors
    /// [`LocalBlocksError`].
    pub fn load(checkpoint: &Checkpoint, span: Span, dtype: Dtype) -> Result<Self, LocalBlocksError> {
        let blocks = checkpoint.config().num_hidden_layers;
        if span.start() > 0 || span.end() as usize >= blocks {
            return Err(LocalBlocksError::Span { asked: span, blocks });
        }
        let stack = checkpoint.load_span(span, &Device::cpu(), dtype);
        let stack = stack.map_err(|source| LocalBlocksError::Checkpoint { span, source: source.into() })?;
        Ok(Self { stack: Arc::new(stack), turn: Semaphore::new(1) })
    }

    /// As [`Self::load`], from a model's directory.
    ///
    /// # Errors
    /// [`LocalBlocksError`].
    pub fn open(directory: &Path, span: Span, dtype: Dtype) -> Result<Self, LocalBlocksError> {
        let checkpoint = Checkpoint::open(directory);
        Self::load(
            &checkpoint.map_err(|source| LocalBlocksError::Checkpoint { span, source: source.into() })?,
            span,
            dtype,
        )
    }

    /// Which.
    pub fn span(&self) -> Span {
        self.stack.span()
    }

    /// Computes where it holds up nobody.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BlockStack) -> Result<T, PassError> + Send + 'static,
    ) -> Result<T, LocalError> {
        // It is never closed.
        let _turn = self.turn.acquire().await.map_err(|_| LocalError::Stopped)?;
        let stack = self.stack.clone();
        let done = tokio::task::spawn_blocking(move || work(&stack)).await;
        Ok(done.map_err(|_| LocalError::Stopped)??)
    }
}
