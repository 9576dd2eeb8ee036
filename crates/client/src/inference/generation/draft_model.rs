//! Foreseeing tokens with a small model of the same vocabulary that runs whole on this machine.

use std::path::Path;
use std::sync::Arc;

use petals_model::{
    BlockStack, CachedRows, Checkpoint, CheckpointError, ClientModel, Device, Dtype, HeadError, KvCache, KvMeter,
    PassError,
};

use crate::inference::sampler::Sampler;

/// A small model, loaded whole. Clones share the weights.
#[derive(Debug, Clone)]
pub struct DraftModel {
    blocks: Arc<BlockStack>,
    local: Arc<ClientModel>,
}

/// Why a draft model did not run.
#[derive(Debug, thiserror::Error)]
enum DraftError {
    #[error(transparent)]
    Blocks(#[from] PassError),
    #[error(transparent)]
    Head(#[from] HeadError),
}

impl DraftModel {
    /// Loads a model's directory, its weights kept in `dtype`. Its tokens must mean the same as the large model's, which is the
    /// caller's to check; the sizes of the vocabularies may differ by what is unused at their ends.
    ///
    /// # Errors
    /// [`CheckpointError`] for files that are missing or malformed.
    pub fn open(directory: &Path, dtype: Dtype) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(directory)?;
        let blocks = checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), dtype)?;
        Ok(Self { blocks: Arc::new(blocks), local: Arc::new(checkpoint.load_client(dtype)?) })
    }

    /// Number of its tokens.
    pub fn vocab_size(&self) -> usize {
        self.local.config().vocab_size
    }
}

/// A draft model and the text that it has read.
#[derive(Debug)]
pub(super) struct DraftText {
    model: DraftModel,
    cache: Option<KvCache>,
    tokens: Vec<u32>,
}

impl DraftText {
    pub(super) fn new(model: DraftModel) -> Self {
        Self { model, cache: None, tokens: Vec::new() }
    }

    /// Whether the model has read anything yet.
    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// `count` tokens that the model puts behind `text`, or fewer where it cannot go on. They are drawn with the random numbers that
    /// `sampler` is going to use, so that where the models agree so do the draws. Computes: not for an async thread.
    pub(super) fn draft(&mut self, text: &[u32], count: usize, mut sampler: Sampler) -> Vec<u32> {
        let mut all = text.to_vec();
        while all.len() < text.len() + count {
            match self.next_logits(&all) {
                Ok(logits) => {
                    let Some(token) = sampler.choose(&logits, &all) else { break };
                    all.push(token);
                }
                Err(error) => {
                    // For example a text that is too long for the small model. The large one goes on without it.
                    tracing::debug!(%error, "the draft model foresees nothing");
                    break;
                }
            }
        }
        all.split_off(text.len())
    }

    fn next_logits(&mut self, text: &[u32]) -> Result<Vec<f32>, DraftError> {
        let common = self.tokens.iter().zip(text).take_while(|(has, wanted)| has == wanted).count();
        let common = common.min(text.len().saturating_sub(1));
        let blocks = &self.model.blocks;
        // Blocks with a window keep only so much to go back to.
        let mut cache = match self.cache.take().filter(|cache| common >= cache.shortest()) {
            Some(cache) => cache,
            None => blocks.cache(blocks.span(), blocks.config().max_position_embeddings, &KvMeter::default())?,
        };
        cache.truncate(common);
        self.tokens.truncate(cache.len());
        let mut hidden = Vec::new();
        for new in text[cache.len()..].chunks(blocks.config().longest_step(blocks.span())) {
            let embedded = self.model.local.embed(new)?;
            let mut rows = [CachedRows { cache: &mut cache, rows: new.len(), tables: None }];
            hidden = blocks.step(embedded, &mut rows, Some(&[new.len() as u32 - 1]))?;
            self.tokens.extend_from_slice(new);
        }
        self.cache = Some(cache);
        Ok(self.model.local.lm_logits(&hidden)?)
    }
}
