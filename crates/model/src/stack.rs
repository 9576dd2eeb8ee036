//! A span of frozen blocks on a device.

use std::fmt;

use petals_protocol::Span;

use crate::config::{AttentionDesign, ModelConfig};
use crate::device::{Device, DeviceError, Dtype, KvDtype};
use crate::engine::shapes::Heads;
use crate::engine::{Engine, OnEngine, PerEngine, map_engine, on_engine};

mod block;
mod blocks;
mod kept;
mod load;
mod memory;
mod pass;
mod plan;
mod rows;
mod span_tables;
mod stash;
mod step;
mod tables;

pub use block::Keep;
use blocks::Blocks;
pub use memory::StepSize;
pub use pass::{ForwardOutput, ForwardPass, InputGrads, OutputGrads, PassError, Pause};
pub use span_tables::SpanTables;
pub use stash::Stash;
pub use step::{CachedPrefix, CachedRows};

/// Consecutive transformer blocks with frozen weights, all on one device.
///
/// Hidden states cross its boundary as f32 host vectors, row-major. Within, the rows of a pass lie as `[prefix; packed
/// text]`, so that one matrix product serves both (see [`petals_protocol::PassLayout`]).
pub struct BlockStack {
    config: ModelConfig,
    span: Span,
    device: Device,
    dtype: Dtype,
    kv_dtype: KvDtype,
    /// Whether experts' weights are read from their files.
    experts_in_files: bool,
    /// Each pass is handed to the engine's own blocks as a whole.
    blocks: OnEngine<Spans>,
}

/// The blocks of a span: [`Blocks`].
enum Spans {}

impl PerEngine for Spans {
    type On<E: Engine> = Blocks<E>;
}

impl fmt::Debug for BlockStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { span, device, dtype, .. } = self;
        write!(f, "BlockStack({span} on {device} in {dtype})")
    }
}

impl BlockStack {
    /// Those of this stack's blocks that lie in `span`, if any, shared with this stack: no weight is copied.
    pub fn part(&self, span: Span) -> Option<Self> {
        let span = self.span.intersect(span)?;
        let blocks = map_engine!(&self.blocks, blocks => blocks.part(span));
        let (config, device) = (self.config.clone(), self.device.clone());
        let Self { dtype, kv_dtype, experts_in_files, .. } = *self;
        Some(Self { config, span, device, dtype, kv_dtype, experts_in_files, blocks })
    }

    /// The model's architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Blocks held.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Where the blocks compute.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How the weights are kept; never [`Dtype::Auto`].
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The same blocks, whose sessions keep keys and values in `dtype`; without this it is f32.
    ///
    /// # Errors
    /// [`DeviceError::KvDtype`] if the device does not keep them in this dtype.
    pub fn with_kv_dtype(self, dtype: KvDtype) -> Result<Self, DeviceError> {
        Ok(Self { kv_dtype: dtype.on(&self.device, self.dtype)?, ..self })
    }

    /// How keys and values of sessions are kept; never [`KvDtype::Auto`].
    pub fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }

    /// Bytes of a cache page ([`crate::PAGE_TOKENS`] positions of one sequence) of `blocks` blocks.
    pub fn kv_page_bytes(&self, blocks: usize) -> u64 {
        self.config.kv_page_bytes(blocks, self.kv_dtype)
    }

    /// Most bytes that the cache of a sequence of up to `positions` takes in the blocks of `span`, see [`ModelConfig::kv_bytes`].
    pub fn kv_bytes(&self, span: Span, positions: u64) -> u64 {
        self.config.kv_bytes(span, positions, self.kv_dtype)
    }

    /// Bytes of the weights on the device; those of experts that stay in their files are not counted.
    pub fn weight_bytes(&self) -> u64 {
        self.config.span_weights(self.span, self.experts_in_files).bytes(self.dtype)
    }

    /// Runs the layout's span, any part of this stack's, forward. The output has a [`Stash`] if anything is kept.
    ///
    /// # Errors
    /// [`PassError`] if the layout makes no sense or is not for these blocks, if an input is missing, superfluous or of
    /// the wrong size, if the device fails, or if an output is not finite.
    pub fn forward(&self, pass: ForwardPass<'_>, keep: Keep) -> Result<ForwardOutput, PassError> {
        self.forward_with_pauses(pass, keep, &|| ())
    }

    /// As [`Self::forward`]; `pause` is called between blocks, and may run others' rows through these blocks meanwhile.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_with_pauses(
        &self,
        pass: ForwardPass<'_>,
        keep: Keep,
        pause: Pause<'_>,
    ) -> Result<ForwardOutput, PassError> {
        pass.check(self.span, &self.config)?;
        on_engine!(&self.blocks, blocks => blocks.forward(pass, keep, pause))
    }

    /// As [`Self::forward`], keeping nothing, with the prefix's keys and values in each block.
    ///
    /// # Errors
    /// As [`Self::forward`], and [`PassError::NoPrefix`].
    pub fn forward_with_keys_values(&self, pass: ForwardPass<'_>) -> Result<ForwardOutput, PassError> {
        pass.check(self.span, &self.config)?;
        if pass.layout.prefix_len == 0 {
            return Err(PassError::NoPrefix);
        }
        on_engine!(&self.blocks, blocks => blocks.forward_with_keys_values(pass))
    }

    /// Runs the stash's span backward, to the gradients of its inputs.
    ///
    /// Gradients of the prefix and of tables are sums over the examples. Without `text_grad` the text's gradient is not returned,
    /// and what only it needs in the first block is not computed.
    ///
    /// # Errors
    /// [`PassError`] if the stash is another stack's, if a gradient is missing, superfluous or of the wrong size, if the
    /// device fails, or if a result is not finite.
    pub fn backward(&self, stash: Stash, grads: OutputGrads, text_grad: bool) -> Result<InputGrads, PassError> {
        self.backward_with_pauses(stash, grads, text_grad, &|| ())
    }

    /// As [`Self::backward`]; `pause` is called between blocks, and may run others' rows through these blocks meanwhile.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn backward_with_pauses(
        &self,
        stash: Stash,
        grads: OutputGrads,
        text_grad: bool,
        pause: Pause<'_>,
    ) -> Result<InputGrads, PassError> {
        grads.check(stash.layout(), self.span, &self.config)?;
        on_engine!(&self.blocks, blocks => blocks.backward(stash, grads, text_grad, pause))
    }
}

impl ModelConfig {
    pub(crate) fn heads(&self) -> Heads {
        let AttentionDesign { scale, soft_cap, alibi, .. } = self.block.attention;
        let (query, key_value, dim) = (self.num_attention_heads, self.num_key_value_heads, self.head_dim);
        Heads { query, key_value, dim, scale, soft_cap, alibi }
    }
}

#[cfg(test)]
mod tests;
