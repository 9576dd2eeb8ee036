//! The blocks of a span on one engine, forward and backward.

use std::sync::Arc;

use petals_protocol::{Injection, PassLayout, Span};

use super::block::{Block, Keep, KeptBlock, Needed};
use super::pass::{ForwardOutput, ForwardPass, InputGrads, OutputGrads, PassError, finite};
use super::plan::PassPlan;
use super::stash::{Kept, Stash};
use crate::config::ModelConfig;
use crate::engine::rotary::Rotary;
use crate::engine::{Engine, Listed};

/// The blocks of a span.
#[derive(Debug)]
pub(super) struct Blocks<E: Engine> {
    pub(super) engine: E,
    pub(super) config: ModelConfig,
    pub(super) rotary: Rotary,
    span: Span,
    /// Shared with stacks that have some of the same blocks.
    blocks: Vec<Arc<Block<E>>>,
}

impl<E: Engine> Blocks<E> {
    pub(super) fn new(engine: E, config: ModelConfig, span: Span, blocks: Vec<Arc<Block<E>>>) -> Self {
        let rotary = Rotary::new(&config);
        Self { engine, config, rotary, span, blocks }
    }

    /// Those of a span that lies within this one, shared.
    pub(super) fn part(&self, span: Span) -> Self {
        Self::new(self.engine.clone(), self.config.clone(), span, self.of(span).to_vec())
    }

    /// The block `number`, if it is one of these.
    pub(super) fn block(&self, number: u32) -> Option<&Arc<Block<E>>> {
        self.blocks.get(number.checked_sub(self.span.start())? as usize)
    }

    /// Blocks of a span that has been checked to lie within this one.
    pub(super) fn of(&self, span: Span) -> &[Arc<Block<E>>] {
        let first = (span.start() - self.span.start()) as usize;
        &self.blocks[first..first + span.len()]
    }

    /// See [`super::BlockStack::forward`]; the pass has been checked.
    pub(super) fn forward(&self, pass: ForwardPass<'_>, keep: Keep) -> Result<ForwardOutput, PassError>
    where
        E: Listed,
    {
        let layout = pass.layout;
        let (output, kept) = self.engine.install(|| self.run_forward(pass, keep))?;
        Ok(ForwardOutput { stash: kept.map(|kept| Stash::new(layout.clone(), E::wrap(kept))), ..output })
    }

    fn run_forward(&self, pass: ForwardPass<'_>, keep: Keep) -> Result<(ForwardOutput, Option<Kept<E>>), PassError> {
        let ForwardPass { layout, text, prefix, prompts } = pass;
        let (engine, d) = (&self.engine, self.config.hidden_size);
        let plan = Arc::new(PassPlan::new(layout, &self.config, &self.rotary, engine));
        let prompts = prompts.map(|values| self.upload_tables(values, layout.prefix_rows()));
        // Under replacement there is no prefix yet: the prompts will put it in front.
        let mut x = engine.upload(join(prefix, text), d);
        let mut kept = Vec::new();
        for (number, block) in self.of(layout.span).iter().enumerate() {
            if let Some(prompts) = &prompts {
                x = self.inject(layout, x, &prompts[number]);
            }
            let (y, of_block) = block.forward(engine, x, plan.block(number), keep);
            kept.extend(of_block);
            x = y;
        }
        let all = engine.download(x)?;
        let (prefix, text) = split(layout.returns_prefix().then_some(layout.prefix_rows() * d), all);
        finite("the span's text output", &text)?;
        prefix.as_ref().map_or(Ok(()), |prefix| finite("the span's prefix output", prefix))?;
        let kept = (keep != Keep::Nothing).then_some(Kept { plan, blocks: kept });
        Ok((ForwardOutput { text, prefix, stash: None }, kept))
    }

    /// See [`super::BlockStack::backward`]; the gradients have been checked.
    pub(super) fn backward(&self, stash: Stash, grads: OutputGrads, text_grad: bool) -> Result<InputGrads, PassError>
    where
        E: Listed,
    {
        let (layout, kept) = stash.into_parts();
        let kept = E::unwrap(kept).ok_or(PassError::ForeignStash)?;
        self.engine.install(|| self.run_backward(&layout, kept, grads, text_grad))
    }

    fn run_backward(
        &self,
        layout: &PassLayout,
        Kept { plan, blocks: mut kept }: Kept<E>,
        grads: OutputGrads,
        text_grad: bool,
    ) -> Result<InputGrads, PassError> {
        let (engine, m, d) = (&self.engine, layout.prefix_rows(), self.config.hidden_size);
        let mut prompts = layout.has_prompts().then(|| vec![0.0; layout.span.len() * m * d]);
        if m == 0 && !text_grad {
            return Ok(InputGrads { text: None, prefix: None, prompts: None });
        }
        let mut dy = engine.upload(join(grads.prefix, grads.text), d);
        for (number, block) in self.of(layout.span).iter().enumerate().rev() {
            let kept: KeptBlock<E> = kept.pop().ok_or(PassError::ForeignStash)?;
            let needed = if number == 0 && !text_grad { Needed::Prefix(m) } else { Needed::All };
            let dx = block.backward(engine, kept, dy, plan.block(number), needed);
            dy = match &mut prompts {
                None => dx,
                Some(prompts) => {
                    let of_block = &mut prompts[number * m * d..(number + 1) * m * d];
                    self.take_prompt_gradient(layout, dx, of_block)?
                }
            };
        }
        let all = engine.download(dy)?;
        let (prefix, text) = match (layout.carries_prefix(), text_grad) {
            (true, _) => split(Some(m * d), all),
            (false, _) => (None, all),
        };
        let grads = InputGrads { text: text_grad.then_some(text), prefix, prompts };
        grads.check_finite()?;
        Ok(grads)
    }

    /// Writes the gradient of a block's prompts to `prompts`, and gives back what goes on to the block before.
    fn take_prompt_gradient(
        &self,
        layout: &PassLayout,
        dx: E::Rows,
        prompts: &mut [f32],
    ) -> Result<E::Rows, PassError> {
        let (engine, m) = (&self.engine, layout.prefix_rows());
        // A replaced prefix has no input: its gradient ends in the prompts.
        let (head, rest) = if layout.carries_prefix() || engine.height(&dx) == m {
            (engine.slice(&dx, 0..m), dx)
        } else {
            engine.split(dx, m)
        };
        prompts.copy_from_slice(&engine.download(head)?);
        Ok(rest)
    }

    /// Tables of `rows` rows each.
    pub(super) fn upload_tables(&self, values: Vec<f32>, rows: usize) -> Vec<E::Rows> {
        let d = self.config.hidden_size;
        values.chunks_exact(rows * d).map(|table| self.engine.upload(table.to_vec(), d)).collect()
    }

    /// What happens to the prefix before a block; `x` is without a prefix under [`Injection::Replace`].
    fn inject(&self, layout: &PassLayout, x: E::Rows, prompts: &E::Rows) -> E::Rows {
        match layout.injection {
            Injection::None => x,
            Injection::Add => self.engine.add(x, prompts, 0),
            Injection::Replace => self.engine.join(prompts, x),
        }
    }
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

/// Prefix of so many values, if there is one in front, and text.
fn split(prefix: Option<usize>, mut all: Vec<f32>) -> (Option<Vec<f32>>, Vec<f32>) {
    let Some(length) = prefix else { return (None, all) };
    let text = all.split_off(length);
    (Some(all), text)
}
