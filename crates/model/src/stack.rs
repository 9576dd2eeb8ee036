//! A span of frozen blocks on a device, or side by side on several.

use std::fmt;

use petals_protocol::Span;

use crate::config::{AttentionDesign, ModelConfig};
use crate::device::{Device, DeviceError, Dtype, KvDtype};
use crate::engine::shapes::Heads;
use crate::engine::{Engine, OnEngine, PerEngine, map_engine};

mod block;
mod blocks;
mod chain;
mod division;
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
mod warm;

pub use block::Keep;
use blocks::Blocks;
pub use division::{Division, Place};
pub use memory::StepSize;
pub use pass::{ForwardOutput, ForwardPass, InputGrads, Manner, OutputGrads, PassError, Pause};
pub use span_tables::SpanTables;
pub use stash::Stash;
pub use step::{CachedPrefix, CachedRows};

/// Consecutive transformer blocks with frozen weights, on one device or divided among several (see [`Division`]).
///
/// Hidden states cross its boundary as f32 host vectors, row-major. Within, the rows of a pass lie as `[prefix; packed
/// text]`, so that one matrix product serves both (see [`petals_protocol::PassLayout`]).
pub struct BlockStack {
    config: ModelConfig,
    span: Span,
    /// Whether experts' weights are read from their files.
    experts_in_files: bool,
    /// In the order of their blocks, without gaps; at least one.
    parts: Vec<Part>,
}

/// Those of a stack's blocks that follow each other on one device.
#[derive(Debug)]
struct Part {
    span: Span,
    place: Place,
    /// Each pass is handed to the engine's own blocks as a whole.
    blocks: OnEngine<Spans>,
}

/// Those of a stack's blocks that are in one place: what they are, and what memory they take there.
#[derive(Debug, Clone, Copy)]
pub struct OnePlace<'a> {
    config: &'a ModelConfig,
    experts_in_files: bool,
    part: &'a Part,
}

/// The blocks of a span: [`Blocks`].
enum Spans {}

impl PerEngine for Spans {
    type On<E: Engine> = Blocks<E>;
}

impl fmt::Debug for BlockStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockStack(")?;
        for (number, Part { span, place, .. }) in self.parts.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{span} on {} in {}", place.device, place.dtype)?;
        }
        f.write_str(")")
    }
}

impl BlockStack {
    /// Those of this stack's blocks that lie in `span`, if any, shared with this stack: no weight is copied.
    pub fn part(&self, span: Span) -> Option<Self> {
        let span = self.span.intersect(span)?;
        let part = |(own, part): (Span, &Part)| {
            let blocks = map_engine!(&part.blocks, blocks => blocks.part(own));
            Part { span: own, place: part.place.clone(), blocks }
        };
        let parts = self.parts_of(span).map(part).collect();
        Some(Self { config: self.config.clone(), span, experts_in_files: self.experts_in_files, parts })
    }

    /// The parts that have blocks of `span`, in their order, each with those that it has.
    fn parts_of(&self, span: Span) -> impl Iterator<Item = (Span, &Part)> {
        self.parts.iter().filter_map(move |part| Some((part.span.intersect(span)?, part)))
    }

    /// Which of the blocks are where.
    pub fn division(&self) -> Division {
        Division::of(self.parts.iter().map(|part| (part.span, part.place.clone())).collect())
    }

    /// Each part by itself, in the order of their blocks.
    pub fn places(&self) -> impl Iterator<Item = OnePlace<'_>> {
        let (config, experts_in_files) = (&self.config, self.experts_in_files);
        self.parts.iter().map(move |part| OnePlace { config, experts_in_files, part })
    }

    /// Bytes of the largest buffer of its first device, if there is a limit.
    #[cfg(all(test, feature = "vulkan"))]
    pub(crate) fn largest_buffer(&self) -> Option<u64> {
        self.parts.first()?.place.device.largest_buffer()
    }

    /// What its Vulkan device has been asked to do.
    #[cfg(all(test, feature = "vulkan"))]
    pub(crate) fn counts(&self) -> Option<petals_kernels::Counted> {
        self.parts.iter().find_map(|part| match &part.blocks {
            OnEngine::Vulkan(blocks) => Some(blocks.engine.counts().so_far()),
            _ => None,
        })
    }

    /// The model's architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Blocks held.
    pub fn span(&self) -> Span {
        self.span
    }

    /// How the weights are kept; never [`Dtype::Auto`]. Of several devices the one with the fewest bits counts.
    pub fn dtype(&self) -> Dtype {
        self.division().dtype()
    }

    /// The same blocks, whose sessions keep keys and values in `dtype`; without this it is what [`Place::kv_dtype`] said.
    ///
    /// # Errors
    /// [`DeviceError::KvDtype`] if a device does not keep them in this dtype.
    pub fn with_kv_dtype(mut self, dtype: KvDtype) -> Result<Self, DeviceError> {
        for Part { place, .. } in &mut self.parts {
            place.kv_dtype = dtype.on(&place.device, place.dtype)?;
        }
        Ok(self)
    }

    /// How keys and values of sessions are kept; never [`KvDtype::Auto`]. Of several devices the one with the fewest bits counts.
    pub fn kv_dtype(&self) -> KvDtype {
        self.division().kv_dtype()
    }

    /// Bytes of a cache page ([`crate::PAGE_TOKENS`] positions of one sequence) of the blocks of `span`.
    pub fn kv_page_bytes(&self, span: Span) -> u64 {
        self.places().map(|place| place.kv_page_bytes(span)).fold(0, u64::saturating_add)
    }

    /// Most bytes that the cache of a sequence of up to `positions` takes in the blocks of `span`, see [`ModelConfig::kv_bytes`].
    pub fn kv_bytes(&self, span: Span, positions: u64) -> u64 {
        self.places().map(|place| place.kv_bytes(span, positions)).fold(0, u64::saturating_add)
    }

    /// Bytes of the weights on all devices; those of experts that stay in their files are not counted.
    pub fn weight_bytes(&self) -> u64 {
        self.places().map(OnePlace::weight_bytes).sum()
    }
}

impl OnePlace<'_> {
    /// Its blocks.
    pub fn span(self) -> Span {
        self.part.span
    }

    /// Where they compute.
    pub fn device(&self) -> &Device {
        &self.part.place.device
    }

    /// As [`BlockStack::weight_bytes`], of these blocks.
    pub fn weight_bytes(self) -> u64 {
        self.config.span_weights(self.part.span, self.experts_in_files).bytes(self.part.place.dtype)
    }

    /// As [`BlockStack::kv_page_bytes`], of these blocks alone.
    pub fn kv_page_bytes(self, span: Span) -> u64 {
        let own = self.part.span.intersect(span);
        own.map_or(0, |own| self.config.kv_page_bytes(own.len(), self.part.place.kv_dtype))
    }

    /// As [`BlockStack::kv_bytes`], of these blocks alone.
    pub fn kv_bytes(self, span: Span, positions: u64) -> u64 {
        let own = self.part.span.intersect(span);
        own.map_or(0, |own| self.config.kv_bytes(own, positions, self.part.place.kv_dtype))
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
