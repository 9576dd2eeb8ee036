//! The blocks of a span on one engine, forward and backward.

use std::sync::Arc;

use petals_protocol::{BlockTable, Injection, PassLayout, Span, TableKind};

use super::block::{Attended, Block, Keep, KeptBlock, Needed};
use super::pass::{ForwardOutput, ForwardPass, InputGrads, OutputGrads, PassError, Pause, finite};
use super::plan::{PassPlan, Variety};
use super::rows::ActiveRows;
use super::stash::{Kept, Stashes};
use super::tables::{self, Adapted, BlockTables, Given};
use crate::config::{LayerDesign, ModelConfig};
use crate::engine::{Engine, Listed, OnEngine};

/// The blocks of a span.
#[derive(Debug)]
pub(super) struct Blocks<E: Engine> {
    pub(super) engine: E,
    pub(super) config: ModelConfig,
    pub(super) variety: Variety,
    span: Span,
    /// Shared with stacks that have some of the same blocks.
    blocks: Vec<Arc<Block<E>>>,
}

impl<E: Engine> Blocks<E> {
    pub(super) fn new(engine: E, config: ModelConfig, span: Span, blocks: Vec<Arc<Block<E>>>) -> Self {
        let layers: Vec<LayerDesign> = blocks.iter().map(|block| block.layer).collect();
        let variety = Variety::of(&config, &layers);
        Self { engine, config, variety, span, blocks }
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

    /// See [`super::BlockStack::forward`]; the pass has been checked. What the backward needs is beside the output.
    pub(super) fn forward(
        &self,
        pass: ForwardPass<'_>,
        keep: Keep,
        pause: Pause<'_>,
    ) -> Result<(ForwardOutput, Option<OnEngine<Stashes>>), PassError>
    where
        E: Listed,
    {
        let (output, kept) = self.engine.install(|| self.run_forward(pass, keep, None, pause))?;
        Ok((output, kept.map(E::wrap)))
    }

    /// See [`super::BlockStack::forward_with_keys_values`]; the pass has been checked.
    pub(super) fn forward_with_keys_values(&self, pass: ForwardPass<'_>) -> Result<ForwardOutput, PassError> {
        self.engine.install(|| {
            let mut of_prefix = Vec::with_capacity(pass.layout.span.len());
            let (output, _) = self.run_forward(pass, Keep::Nothing, Some(&mut of_prefix), &|| ())?;
            let mut keys_values = Vec::new();
            for rows in of_prefix {
                keys_values.extend(self.engine.download(rows)?);
            }
            finite("the keys and values of the prefix", &keys_values)?;
            Ok(ForwardOutput { keys_values: Some(keys_values), ..output })
        })
    }

    /// Where they are wanted, and nothing is kept, each block's keys and values of the prefix are added to `of_prefix`.
    fn run_forward(
        &self,
        pass: ForwardPass<'_>,
        keep: Keep,
        mut of_prefix: Option<&mut Vec<E::Rows>>,
        pause: Pause<'_>,
    ) -> Result<(ForwardOutput, Option<Kept<E>>), PassError> {
        let ForwardPass { layout, text, prefix, tables } = pass;
        let (engine, d) = (&self.engine, self.config.hidden_size);
        let plan = Arc::new(PassPlan::new(layout, &self.config, &self.variety, engine));
        let slots = layout.block_tables(self.config.block_widths());
        let mut tables = tables.map_or_else(Vec::new, |values| BlockTables::upload_all(engine, &slots, &values));
        // Under replacement there is no prefix yet: the prompts will put it in front.
        let mut x = engine.upload(join(prefix, text), d);
        let mut kept = Vec::new();
        for (number, block) in self.of(layout.span).iter().enumerate() {
            if number > 0 {
                pause();
            }
            let mut own = tables.get_mut(number);
            if let Some(prompts) = own.as_mut().and_then(|own| own.prompts.take()) {
                x = self.inject(layout, x, &prompts);
            }
            let plan = plan.block(number, block.layer);
            let adapted = own.as_deref().map(|own| self.adapted(own, &x, plan.step.rows));
            let given = given(own.as_deref(), adapted.as_slice());
            x = if let Some(of_prefix) = &mut of_prefix {
                block.step(engine, x, plan.step, given, |q, kv| {
                    let Attended { output, turned } = block.attend(engine, (q, kv), plan, given);
                    of_prefix.extend(turned.map(|(_, kv)| engine.slice(&kv, 0..layout.prefix_rows())));
                    output
                })
            } else {
                let (y, of_block) = block.forward(engine, x, plan, given, keep);
                kept.extend(of_block);
                y
            };
        }
        let all = engine.download(x)?;
        let (prefix, text) = split(layout.returns_prefix().then_some(layout.prefix_rows() * d), all);
        finite("the span's text output", &text)?;
        prefix.as_ref().map_or(Ok(()), |prefix| finite("the span's prefix output", prefix))?;
        let kept = (keep != Keep::Nothing).then_some(Kept { plan, blocks: kept, tables });
        Ok((ForwardOutput { text, prefix, stash: None, keys_values: None }, kept))
    }

    /// A block's tables over all rows of `x`.
    fn adapted<'t>(&self, tables: &'t BlockTables<E>, x: &E::Rows, active: &ActiveRows<E>) -> Adapted<'t, E> {
        let rows = self.engine.height(x);
        Adapted { tables: &tables.weights, rows: 0..rows, active: 0..active.count(&self.engine, rows) }
    }

    /// See [`super::BlockStack::backward`]; the gradients have been checked.
    pub(super) fn backward(
        &self,
        layout: &PassLayout,
        kept: OnEngine<Stashes>,
        (grads, text_grad): (OutputGrads, bool),
        pause: Pause<'_>,
    ) -> Result<InputGrads, PassError>
    where
        E: Listed,
    {
        let kept = E::unwrap(kept).ok_or(PassError::ForeignStash)?;
        self.engine.install(|| self.run_backward(layout, kept, (grads, text_grad), pause))
    }

    fn run_backward(
        &self,
        layout: &PassLayout,
        Kept { plan, blocks: mut kept, tables }: Kept<E>,
        (grads, text_grad): (OutputGrads, bool),
        pause: Pause<'_>,
    ) -> Result<InputGrads, PassError> {
        let (engine, m, d) = (&self.engine, layout.hidden_prefix_rows(), self.config.hidden_size);
        let slots = layout.block_tables(self.config.block_widths());
        let of_block: usize = slots.iter().map(BlockTable::values).sum();
        let mut of_tables = layout.has_tables().then(|| vec![0.0; layout.span.len() * of_block]);
        let mut dy = engine.upload(join(grads.prefix, grads.text), d);
        for (number, block) in self.of(layout.span).iter().enumerate().rev() {
            if number + 1 < layout.span.len() {
                pause();
            }
            let kept: KeptBlock<E> = kept.pop().ok_or(PassError::ForeignStash)?;
            let needed = match (number > 0 || text_grad, m) {
                (true, _) => Needed::All,
                (false, 0) => Needed::Nothing,
                (false, m) => Needed::Prefix(m),
            };
            let (own, plan) = (tables.get(number), plan.block(number, block.layer));
            let adapted = own.map(|own| self.adapted(own, kept.input(), plan.step.rows));
            let given = given(own, adapted.as_slice());
            let (dx, table_grads) = block.backward(engine, kept, dy, plan, given, needed);
            let Some(of_tables) = &mut of_tables else {
                dy = dx.ok_or(PassError::ForeignStash)?;
                continue;
            };
            let of_block = &mut of_tables[number * of_block..(number + 1) * of_block];
            tables::download(engine, &slots, table_grads, of_block)?;
            // Nothing is left for blocks in front of the first one.
            let Some(dx) = dx else {
                let grads = InputGrads { text: None, prefix: None, tables: Some(std::mem::take(of_tables)) };
                grads.check_finite()?;
                return Ok(grads);
            };
            let prompts = slots.first().filter(|slot| slot.kind == TableKind::Prompts).map(BlockTable::values);
            dy = match prompts {
                None => dx,
                Some(count) => self.take_prompt_gradient(layout, dx, &mut of_block[..count])?,
            };
        }
        let all = engine.download(dy)?;
        let (prefix, text) = match (layout.carries_prefix(), text_grad) {
            (true, _) => split(Some(m * d), all),
            (false, _) => (None, all),
        };
        let grads = InputGrads { text: text_grad.then_some(text), prefix, tables: of_tables };
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

    /// What happens to the prefix before a block; `x` is without a prefix under [`Injection::Replace`].
    fn inject(&self, layout: &PassLayout, x: E::Rows, prompts: &E::Rows) -> E::Rows {
        match layout.injection {
            Injection::None | Injection::KeysValues => x,
            Injection::Add => self.engine.add(x, prompts, 0),
            Injection::Replace => self.engine.join(prompts, x),
        }
    }
}

/// What a block gets besides its rows.
fn given<'t, E: Engine>(tables: Option<&'t BlockTables<E>>, adapted: &'t [Adapted<'t, E>]) -> Given<'t, E> {
    Given { adapted, keys_values: tables.and_then(|tables| tables.keys_values.as_ref()) }
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
