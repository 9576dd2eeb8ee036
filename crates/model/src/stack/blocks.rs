//! The blocks of a span on one engine, forward and backward.

use std::sync::Arc;

use petals_protocol::{BlockTable, Injection, PassLayout, Span, TableKind};

use super::block::{Attended, Block, Keep, KeptBlock, Needed};
use super::pass::{ForwardOutput, ForwardPass, InputGrads, Manner, OutputGrads, PassError};
use super::plan::{PassPlan, Variety};
use super::rows::ActiveRows;
use super::stash::{Kept, Stashes};
use super::tables::{self, Adapted, BlockTables, Given};
use crate::config::{LayerDesign, ModelConfig};
use crate::engine::{Engine, Fetched, Leaving, Listed, OnEngine};

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
        manner: Manner<'_>,
    ) -> Result<(ForwardOutput, Option<OnEngine<Stashes>>), PassError>
    where
        E: Listed,
    {
        let (output, kept) = self.engine.install(|| self.run_forward(pass, keep, false, manner))?;
        Ok((output, kept.map(E::wrap)))
    }

    /// See [`super::BlockStack::forward_with_keys_values`]; the pass has been checked.
    pub(super) fn forward_with_keys_values(&self, pass: ForwardPass<'_>) -> Result<ForwardOutput, PassError> {
        let (output, _) = self.engine.install(|| self.run_forward(pass, Keep::Nothing, true, Manner::PLAIN))?;
        Ok(output)
    }

    /// With `keys_values`, where nothing is kept, the output has those of the prefix.
    fn run_forward(
        &self,
        pass: ForwardPass<'_>,
        keep: Keep,
        keys_values: bool,
        manner: Manner<'_>,
    ) -> Result<(ForwardOutput, Option<Kept<E>>), PassError> {
        let ForwardPass { layout, text, prefix, tables } = pass;
        let (engine, d) = (&self.engine, self.config.hidden_size);
        let plan = Arc::new(PassPlan::new(layout, &self.config, &self.variety, engine));
        let slots = layout.block_tables(self.config.block_widths());
        let mut tables = tables.map_or_else(Vec::new, |values| BlockTables::upload_all(engine, &slots, &values));
        // Under replacement there is no prefix yet: the prompts will put it in front.
        let mut x = engine.upload(join(prefix, text), d);
        let (watch, mut kept, mut of_prefix) = (engine.watch(), Vec::new(), Vec::new());
        for (number, block) in self.of(layout.span).iter().enumerate() {
            self.pause_behind(number, manner)?;
            let mut own = tables.get_mut(number);
            if let Some(prompts) = own.as_mut().and_then(|own| own.prompts.take()) {
                x = self.inject(layout, x, &prompts);
            }
            x = block.watched(engine, x, number, &watch);
            let plan = plan.block(number, block.layer);
            let adapted = own.as_deref().map(|own| self.adapted(own, &x, plan.step.rows));
            let given = given(own.as_deref(), adapted.as_slice());
            x = if keys_values {
                block.step(engine, x, plan.step, given, |q, kv| {
                    let Attended { output, turned } = block.attend(engine, (q, kv), plan, given);
                    of_prefix.extend(turned.map(|(_, kv)| {
                        let rows = engine.slice(&kv, 0..layout.prefix_rows());
                        Leaving { rows, first: 0, place: place_of(number), rounded: false }
                    }));
                    output
                })
            } else {
                let (y, of_block) = block.forward(engine, x, plan, given, keep);
                kept.extend(of_block);
                y
            };
        }
        let in_front = layout.returns_prefix().then(|| layout.prefix_rows());
        let last = place_of(layout.span.len() - 1);
        let mut leaving = in_front_and_behind(engine, x, in_front, last, manner.rounded);
        let parts = leaving.len();
        leaving.extend(of_prefix);
        let mut matrices = checked(engine.fetch(leaving, watch)?, layout.span)?.into_iter();
        let (prefix, text) = prefix_and_text(matrices.by_ref().take(parts).collect());
        let kept = (keep != Keep::Nothing).then_some(Kept { plan, blocks: kept, tables });
        let keys_values = keys_values.then(|| matrices.collect::<Vec<_>>().concat());
        Ok((ForwardOutput { text, prefix, stash: None, keys_values }, kept))
    }

    /// When so many blocks of a pass have been asked for, and others are to come.
    fn pause_behind(&self, blocks: usize, manner: Manner<'_>) -> Result<(), PassError> {
        if blocks > 0 {
            if blocks.is_multiple_of(manner.ahead.max(1)) {
                self.engine.finish()?;
            }
            (manner.pause)();
        }
        Ok(())
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
        manner: Manner<'_>,
    ) -> Result<InputGrads, PassError>
    where
        E: Listed,
    {
        let kept = E::unwrap(kept).ok_or(PassError::ForeignStash)?;
        self.engine.install(|| self.run_backward(layout, kept, (grads, text_grad), manner))
    }

    fn run_backward(
        &self,
        layout: &PassLayout,
        Kept { plan, blocks: mut kept, tables }: Kept<E>,
        (grads, text_grad): (OutputGrads, bool),
        manner: Manner<'_>,
    ) -> Result<InputGrads, PassError> {
        let (engine, m, d) = (&self.engine, layout.hidden_prefix_rows(), self.config.hidden_size);
        let slots = layout.block_tables(self.config.block_widths());
        let of_block: usize = slots.iter().map(BlockTable::values).sum();
        // Gradients of tables, and where they go, are fetched in the end, so that nothing waits in between.
        let mut of_tables = Vec::new();
        let mut dy = Some(engine.upload(join(grads.prefix, grads.text), d));
        for (number, block) in self.of(layout.span).iter().enumerate().rev() {
            self.pause_behind(layout.span.len() - 1 - number, manner)?;
            let kept: KeptBlock<E> = kept.pop().ok_or(PassError::ForeignStash)?;
            let needed = match (number > 0 || text_grad, m) {
                (true, _) => Needed::All,
                (false, 0) => Needed::Nothing,
                (false, m) => Needed::Prefix(m),
            };
            let (own, plan) = (tables.get(number), plan.block(number, block.layer));
            let adapted = own.map(|own| self.adapted(own, kept.input(), plan.step.rows));
            let given = given(own, adapted.as_slice());
            let incoming = dy.take().ok_or(PassError::ForeignStash)?;
            let (dx, table_grads) = block.backward(engine, kept, incoming, plan, given, needed);
            let first_of = |kind| tables::first_of(&slots, kind).map(|first| number * of_block + first);
            of_tables.extend(table_grads.into_iter().filter_map(|(kind, rows)| Some((first_of(kind)?, rows))));
            // Nothing is left for blocks in front of the first one.
            dy = match (first_of(TableKind::Prompts), dx) {
                (Some(first), Some(dx)) => {
                    let (prompts, rest) = self.prompt_gradient(layout, dx);
                    of_tables.push((first, prompts));
                    Some(rest)
                }
                (_, dx) => dx,
            };
        }
        let in_front = layout.carries_prefix().then_some(m);
        let mut leaving = dy.map_or_else(Vec::new, |dy| in_front_and_behind(engine, dy, in_front, 1, manner.rounded));
        let parts = leaving.len();
        let (firsts, rows): (Vec<usize>, Vec<E::Rows>) = of_tables.into_iter().unzip();
        leaving.extend(rows.into_iter().map(|rows| Leaving { rows, first: 0, place: 1, rounded: false }));
        let Fetched { matrices, not_finite } = engine.fetch(leaving, engine.watch())?;
        let mut matrices = matrices.into_iter();
        let (prefix, text) = prefix_and_text(matrices.by_ref().take(parts).collect());
        let tables = layout.has_tables().then(|| {
            let mut tables = vec![0.0; layout.span.len() * of_block];
            for (first, values) in firsts.into_iter().zip(matrices) {
                tables[first..first + values.len()].copy_from_slice(&values);
            }
            tables
        });
        let grads = InputGrads { text: text_grad.then_some(text), prefix, tables };
        if not_finite.is_some() {
            grads.check_finite()?;
            // It was too large for bf16 alone.
            return Err(PassError::NotFinite("a gradient"));
        }
        Ok(grads)
    }

    /// The gradient of a block's prompts, and what goes on to the block before.
    fn prompt_gradient(&self, layout: &PassLayout, dx: E::Rows) -> (E::Rows, E::Rows) {
        let (engine, m) = (&self.engine, layout.prefix_rows());
        // A replaced prefix has no input: its gradient ends in the prompts.
        if layout.carries_prefix() || engine.height(&dx) == m {
            return (engine.slice(&dx, 0..m), dx);
        }
        engine.split(dx, m)
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

/// What a watch remembers if what the block `number` of a span gives is not finite.
pub(super) fn place_of(number: usize) -> u32 {
    number as u32 + 1
}

/// What a pass through `span` gave.
///
/// # Errors
/// [`PassError::BlockNotFinite`] if its watch has remembered a block.
pub(super) fn checked(fetched: Fetched, span: Span) -> Result<Vec<Vec<f32>>, PassError> {
    match fetched.not_finite {
        Some(place) => {
            Err(PassError::BlockNotFinite(span.start() + place.saturating_sub(1).min(span.len() as u32 - 1)))
        }
        None => Ok(fetched.matrices),
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

/// The rows of a text, and before them those of a prefix if there are so many in front, which are few and always leave as they are.
fn in_front_and_behind<E: Engine>(
    engine: &E,
    rows: E::Rows,
    in_front: Option<usize>,
    place: u32,
    rounded: bool,
) -> Vec<Leaving<E::Rows>> {
    let prefix = in_front.map(|m| Leaving { rows: engine.slice(&rows, 0..m), first: 0, place, rounded: false });
    prefix.into_iter().chain([Leaving { rows, first: in_front.unwrap_or(0), place, rounded }]).collect()
}

/// The values of [`in_front_and_behind`], if there were any.
fn prefix_and_text(mut parts: Vec<Vec<f32>>) -> (Option<Vec<f32>>, Vec<f32>) {
    let text = parts.pop().unwrap_or_default();
    (parts.pop(), text)
}
