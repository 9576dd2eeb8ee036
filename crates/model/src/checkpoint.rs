//! A model's directory: its configuration and its safetensors files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use petals_protocol::{Fingerprint, ModelId, ModelIdError, Span};

use crate::client_model::{ClientModel, ClientParts};
use crate::config::ModelConfig;
use crate::device::{Device, Dtype};
use crate::kernels::matmul::FrozenMatrix;
use crate::stack::BlockStack;
use crate::stack::block::Block;
use load::Loader;

mod error;
pub(crate) mod file;
mod index;
mod load;

pub use error::CheckpointError;
use index::TensorIndex;

/// A checkpoint in Hugging Face's layout: `config.json` and `model.safetensors`, or shards with their index.
///
/// Files are mapped, not read, and only those are opened that hold a tensor asked for: a server needs the shards of its
/// span, a client those of embeddings, final norm and head. The files must not change while the checkpoint or a
/// [`ClientModel`] made from it is alive.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    config: ModelConfig,
    index: TensorIndex,
}

impl Checkpoint {
    /// Reads the configuration and the names of the tensors, no weights.
    ///
    /// # Errors
    /// A [`CheckpointError`] naming the file that is missing, malformed or not supported.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref();
        let path: PathBuf = dir.join("config.json");
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
        let config = ModelConfig::from_json(&text).map_err(|source| CheckpointError::Config { path, source })?;
        Ok(Self { directory: dir.to_owned(), config, index: TensorIndex::open(dir)? })
    }

    /// The model's architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every block of the model.
    pub fn blocks(&self) -> Span {
        Span::new(0, self.config.num_hidden_layers as u32).expect("a configuration has at least one block")
    }

    /// The model's identity in a swarm: `name`, or the directory's own name, and the fingerprint.
    ///
    /// # Errors
    /// [`ModelIdError`] if the name cannot be used.
    pub fn model_id(&self, name: Option<&str>) -> Result<ModelId, ModelIdError> {
        let own = || {
            // Of links and of `.` the name that people know is that of the target.
            let path = self.directory.canonicalize().unwrap_or_else(|_| self.directory.clone());
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        ModelId::new(name.map_or_else(own, str::to_owned), self.fingerprint())
    }

    /// Tells models apart: a hash over the configuration's architecture and the names of all tensors.
    ///
    /// It is the same however the model is split into files and whatever dtype it is saved in. It says nothing of the
    /// weights' values.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut text = self.config.canonical();
        // Buffers that some versions of transformers saved and others did not, and a tied head that need not be there.
        let counts = |name: &&str| {
            let optional = self.config.tie_word_embeddings && *name == "lm_head.weight";
            !optional && !name.ends_with("rotary_emb.inv_freq")
        };
        for name in self.index.names().filter(counts) {
            text.push_str(name);
            text.push('\n');
        }
        let mut short = [0; 8];
        short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
        Fingerprint(short)
    }

    /// Bytes that the weights of `span` take on a device, in `dtype` ([`Dtype::Auto`] counts as f32; see [`Dtype::on`]).
    pub fn span_bytes(&self, span: Span, dtype: Dtype) -> u64 {
        span.len() as u64 * self.config.block_weights().bytes(dtype)
    }

    /// Loads blocks onto a device.
    ///
    /// # Errors
    /// If the model has no such blocks, or a tensor is missing, misshapen or of a dtype that is not read.
    pub fn load_span(&self, span: Span, device: &Device, dtype: Dtype) -> Result<BlockStack, CheckpointError> {
        self.load(span, device, dtype, |_| None)
    }

    /// Loads the blocks of `span` to where `loaded` has its own, in the same dtype. Those that both have are shared, not
    /// loaded again. `loaded` must come from this checkpoint.
    ///
    /// # Errors
    /// As [`Self::load_span`].
    pub fn load_span_beside(&self, span: Span, loaded: &BlockStack) -> Result<BlockStack, CheckpointError> {
        self.load(span, loaded.device(), loaded.dtype(), |number| loaded.block(number).cloned())
    }

    fn load(
        &self,
        span: Span,
        device: &Device,
        dtype: Dtype,
        loaded: impl Fn(u32) -> Option<Arc<Block>>,
    ) -> Result<BlockStack, CheckpointError> {
        let blocks = self.config.num_hidden_layers;
        if span.end() as usize > blocks {
            return Err(CheckpointError::Span { span, blocks });
        }
        let dtype = dtype.on(device);
        let loader = Loader { config: &self.config, index: &self.index, device, dtype };
        let block = |number| loaded(number).map_or_else(|| loader.block(number).map(Arc::new), Ok);
        let blocks = span.blocks().map(block).collect::<Result<_, _>>()?;
        Ok(BlockStack::new(self.config.clone(), span, device.clone(), dtype, blocks))
    }

    /// Loads what a client computes itself: embeddings, final norm and head, on the CPU. The head's weights are kept in
    /// `dtype` ([`Dtype::Auto`] is f32).
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or of a dtype that is not read.
    pub fn load_client(&self, dtype: Dtype) -> Result<ClientModel, CheckpointError> {
        let (vocab, d) = (self.config.vocab_size, self.config.hidden_size);
        let embeddings = self.index.locate("model.embed_tokens.weight", &[vocab, d])?;
        let (file, norm) = self.index.locate("model.norm.weight", &[d])?;
        let norm = load::decode(&file, &norm);
        let tied = self.config.tie_word_embeddings;
        let (file, located) =
            if tied { embeddings.clone() } else { self.index.locate("lm_head.weight", &[vocab, d])? };
        let column = |token: usize, values: &mut [f32]| load::decode_row(&file, &located, token, values);
        let head = FrozenMatrix::from_columns([d, vocab], dtype.on(&Device::cpu()), column);
        Ok(ClientModel::new(self.config.clone(), ClientParts { embeddings, norm, head }))
    }
}

#[cfg(test)]
mod tests;
