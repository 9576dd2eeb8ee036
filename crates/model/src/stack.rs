//! A span of frozen blocks on a device.

use std::fmt;
use std::sync::Arc;

use petals_protocol::{Injection, PassLayout, Span};

use crate::config::ModelConfig;
use crate::device::{Device, Dtype};
use crate::ops::attention::Heads;
use crate::ops::rotary::Rotary;
use crate::tensor::{Tensor, from_vec, into_vec, rows};

pub(crate) mod block;
mod memory;
mod pass;
mod plan;
mod stash;
mod step;

use block::{Block, Needed};
pub use pass::{ForwardOutput, ForwardPass, InputGrads, OutputGrads, PassError};
use plan::PassPlan;
pub use stash::{Keep, Stash};
pub use step::{CachedPrefix, CachedRows};

/// Consecutive transformer blocks with frozen weights, all on one device.
///
/// Hidden states cross its boundary as f32 host vectors, row-major. Within, the rows of a pass lie as `[prefix; packed
/// text]`, so that one matrix product serves both (see [`PassLayout`]).
pub struct BlockStack {
    config: ModelConfig,
    span: Span,
    device: Device,
    dtype: Dtype,
    rotary: Rotary,
    /// Shared with stacks that have some of the same blocks.
    blocks: Vec<Arc<Block>>,
}

impl fmt::Debug for BlockStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { span, device, dtype, .. } = self;
        write!(f, "BlockStack({span} on {device} in {dtype})")
    }
}

impl BlockStack {
    pub(crate) fn new(config: ModelConfig, span: Span, device: Device, dtype: Dtype, blocks: Vec<Arc<Block>>) -> Self {
        let rotary = Rotary::new(&config);
        Self { config, span, device, dtype, rotary, blocks }
    }

    /// Those of this stack's blocks that lie in `span`, if any, shared with this stack: no weight is copied.
    pub fn part(&self, span: Span) -> Option<Self> {
        let span = self.span.intersect(span)?;
        let blocks = self.blocks_of(span).to_vec();
        Some(Self::new(self.config.clone(), span, self.device.clone(), self.dtype, blocks))
    }

    /// The block `number`, if it is one of these.
    pub(crate) fn block(&self, number: u32) -> Option<&Arc<Block>> {
        self.blocks.get(number.checked_sub(self.span.start())? as usize)
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

    /// Bytes of the weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.blocks.len() as u64 * self.config.block_weights().bytes(self.dtype)
    }

    /// Runs the layout's span, any part of this stack's, forward. The output has a [`Stash`] if anything is kept.
    ///
    /// # Errors
    /// [`PassError`] if the layout makes no sense or is not for these blocks, if an input is missing, superfluous or of
    /// the wrong size, if the device fails, or if an output is not finite.
    pub fn forward(&self, pass: ForwardPass<'_>, keep: Keep) -> Result<ForwardOutput, PassError> {
        pass.check(self.span, &self.config)?;
        self.device.install(|| self.run_forward(pass, keep))
    }

    fn run_forward(&self, pass: ForwardPass<'_>, keep: Keep) -> Result<ForwardOutput, PassError> {
        let ForwardPass { layout, text, prefix, prompts } = pass;
        let plan = Arc::new(PassPlan::new(layout, &self.config, &self.rotary, &self.device));
        let prompts = prompts.map(|values| self.prompts(layout, values));
        // Under replacement there is no prefix yet: the prompts will put it in front.
        let mut x = from_rows(join(prefix, text), self.config.hidden_size, &self.device);
        let mut stashes = Vec::new();
        for (number, block) in self.blocks_of(layout.span).iter().enumerate() {
            if let Some(prompts) = &prompts {
                x = inject(layout, x, prompts[number].clone());
            }
            let (y, kept) = block.forward(x, plan.block(number), keep)?;
            stashes.extend(kept);
            x = y;
        }
        let (prefix, text) = split(layout.returns_prefix().then_some(layout.prefix_rows()), into_vec(x)?, &self.config);
        pass::finite("the span's text output", &text)?;
        prefix.as_ref().map_or(Ok(()), |prefix| pass::finite("the span's prefix output", prefix))?;
        let stash = (keep != Keep::Nothing).then(|| Stash { layout: layout.clone(), plan, blocks: stashes });
        Ok(ForwardOutput { text, prefix, stash })
    }

    /// Runs the stash's span backward, to the gradients of its inputs.
    ///
    /// Prefix and prompt gradients are sums over the examples. Without `text_grad` the text's gradient is not returned,
    /// and what only it needs in the first block is not computed.
    ///
    /// # Errors
    /// [`PassError`] if the stash is another stack's, if a gradient is missing, superfluous or of the wrong size, if the
    /// device fails, or if a result is not finite.
    pub fn backward(&self, stash: Stash, grads: OutputGrads, text_grad: bool) -> Result<InputGrads, PassError> {
        grads.check(&stash.layout, self.span, &self.config)?;
        self.device.install(|| self.run_backward(stash, grads, text_grad))
    }

    fn run_backward(&self, stash: Stash, grads: OutputGrads, text_grad: bool) -> Result<InputGrads, PassError> {
        let Stash { layout, plan, blocks: mut stashes } = stash;
        let (m, d) = (layout.prefix_rows(), self.config.hidden_size);
        let mut prompts = layout.has_prompts().then(|| vec![0.0; layout.span.len() * m * d]);
        if m == 0 && !text_grad {
            return Ok(InputGrads { text: None, prefix: None, prompts: None });
        }
        let mut dy = from_rows(join(grads.prefix, grads.text), d, &self.device);
        for (number, block) in self.blocks_of(layout.span).iter().enumerate().rev() {
            let stash = stashes.pop().ok_or(PassError::ForeignStash)?;
            let needed = if number == 0 && !text_grad { Needed::Prefix(m) } else { Needed::All };
            let dx = block.backward(stash, dy, plan.block(number), needed)?;
            if let Some(prompts) = &mut prompts {
                prompts[number * m * d..(number + 1) * m * d].copy_from_slice(&into_vec(rows(&dx, 0..m))?);
            }
            // A replaced prefix has no input: its gradient ends in the prompts.
            let [height, _] = dx.dims();
            dy = if layout.carries_prefix() || height == m { dx } else { rows(&dx, m..height) };
        }
        let all = into_vec(dy)?;
        let (prefix, text) = match (layout.carries_prefix(), text_grad) {
            (true, _) => split(Some(m), all, &self.config),
            (false, _) => (None, all),
        };
        let grads = InputGrads { text: text_grad.then_some(text), prefix, prompts };
        grads.check_finite()?;
        Ok(grads)
    }

    /// Blocks of a span that has been checked to lie within this stack's.
    fn blocks_of(&self, span: Span) -> &[Arc<Block>] {
        let first = (span.start() - self.span.start()) as usize;
        &self.blocks[first..first + span.len()]
    }

    fn prompts(&self, layout: &PassLayout, mut values: Vec<f32>) -> Vec<Tensor<2>> {
        let (m, d) = (layout.prefix_rows(), self.config.hidden_size);
        let mut tables = Vec::with_capacity(layout.span.len());
        while values.len() > m * d {
            tables.push(values.split_off(values.len() - m * d));
        }
        tables.push(values);
        tables.into_iter().rev().map(|table| from_vec(table, [m, d], self.device.raw())).collect()
    }
}

/// What happens to the prefix before a block; `x` is without a prefix under [`Injection::Replace`].
fn inject(layout: &PassLayout, x: Tensor<2>, prompts: Tensor<2>) -> Tensor<2> {
    match layout.injection {
        Injection::None => x,
        Injection::Add => {
            let sum = rows(&x, 0..layout.prefix_rows()) + prompts;
            let [m, d] = sum.dims();
            x.slice_assign([0..m, 0..d], sum)
        }
        Injection::Replace => Tensor::cat(vec![prompts, x], 0),
    }
}

fn from_rows(values: Vec<f32>, width: usize, device: &Device) -> Tensor<2> {
    let height = values.len() / width;
    from_vec(values, [height, width], device.raw())
}

fn join(prefix: Option<Vec<f32>>, text: Vec<f32>) -> Vec<f32> {
    match prefix {
        Some(mut all) => {
            all.extend_from_slice(&text);
            all
        }
        None => text,
    }
}

/// Prefix, if there is one in front, and text.
fn split(prefix_rows: Option<usize>, mut all: Vec<f32>, config: &ModelConfig) -> (Option<Vec<f32>>, Vec<f32>) {
    let Some(rows) = prefix_rows else { return (None, all) };
    let text = all.split_off(rows * config.hidden_size);
    (Some(all), text)
}

impl ModelConfig {
    pub(crate) fn heads(&self) -> Heads {
        Heads { query: self.num_attention_heads, key_value: self.num_key_value_heads, dim: self.head_dim }
    }
}

#[cfg(test)]
mod tests;
