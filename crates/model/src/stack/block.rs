//! One transformer block with frozen weights: its forward, and what that keeps. `R` rows, `A` of them active.
//!
//! Tables that travel with a pass may adapt the weights, and keys and values may lie in front of those of the rows ([`Given`]). What
//! families do differently is in the block's design, and in which of its weights there are.

use petals_protocol::Module;

use super::plan::{BlockPlan, StepPlan};
use super::rows::ActiveRows;
use super::tables::{Adapted, Given};
use crate::config::{BlockDesign, LayerDesign, MlpReads};
use crate::engine::Engine;
use crate::engine::rotary::Turn;
use crate::engine::shapes::Heads;
use network::{InsideStash, Network};

mod backward;
mod chosen;
mod experts;
mod mlp;
mod network;
mod stash;

pub(super) use experts::{Experts, Shared};
pub(super) use mlp::Mlp;
pub(super) use network::Network as BlockNetwork;
pub use stash::Keep;
use stash::{BeforeNorms, BlockStash};
pub(super) use stash::{KeptBlock, Needed};

/// The weights of one block.
///
/// Keys and values share a weight, and so do gate and up. Queries have their own, because they are computed for the
/// active rows only.
#[derive(Debug)]
pub(super) struct Block<E: Engine> {
    pub(super) design: BlockDesign,
    pub(super) layer: LayerDesign,
    pub(super) attention_norm: Option<E::Norm>,
    pub(super) queries: E::Linear,
    pub(super) keys_values: E::Linear,
    pub(super) head_norms: Option<HeadNorms<E>>,
    /// A score of each query head that goes to no key, `[1, query_heads]`.
    pub(super) sinks: Option<E::Rows>,
    pub(super) output: E::Linear,
    pub(super) attention_out_norm: Option<E::Norm>,
    pub(super) mlp_norm: Option<E::Norm>,
    pub(super) network: Network<E>,
    pub(super) mlp_out_norm: Option<E::Norm>,
}

/// Norms of queries and of keys, head by head or of all heads together.
#[derive(Debug)]
pub(super) struct HeadNorms<E: Engine> {
    pub(super) queries: E::Norm,
    pub(super) keys: E::Norm,
    /// Whether all heads are normed together.
    pub(super) whole: bool,
}

/// A block's forward up to the activation of its MLP.
struct Halfway<E: Engine> {
    stash: BlockStash<E>,
    /// What the MLP's output is added to, `[A, d]`, if it is not in the stash.
    carried: Option<E::Rows>,
}

/// What attention gave.
pub(super) struct Attended<E: Engine> {
    /// `[A, query_heads·dim]`
    pub(super) output: E::Rows,
    /// Queries, and keys beside values, as they were attended with, where a stash may need them.
    pub(super) turned: Option<(E::Rows, E::Rows)>,
}

impl<E: Engine> Block<E> {
    /// From all rows `[R, d]` to the active ones `[A, d]`, with what is kept, if anything.
    pub(super) fn forward(
        &self,
        engine: &E,
        x: E::Rows,
        plan: BlockPlan<'_, E>,
        given: Given<'_, E>,
        keep: Keep,
    ) -> (E::Rows, Option<KeptBlock<E>>) {
        let attend = |q: E::Rows, kv: E::Rows| self.attend(engine, (q, kv), plan, given);
        let mut halfway = self.up_to_activation(engine, x, plan.step, given, attend, keep == Keep::Everything);
        if keep == Keep::Everything {
            let carried = halfway.carried.take().or_else(|| halfway.stash.residual.clone());
            let y = self.out_of_mlp(engine, &mut halfway.stash, carried, given, true);
            return (y, Some(KeptBlock::Everything(Box::new(halfway.stash))));
        }
        let Halfway { mut stash, carried } = halfway;
        let carried = carried.or_else(|| stash.residual.take());
        let y = self.out_of_mlp(engine, &mut stash, carried, given, false);
        (y, (keep == Keep::Inputs).then_some(KeptBlock::Input(stash.input)))
    }

    /// Lets the watch over a pass see what the block in front of this one, which has the number `number` in its span, gives.
    pub(super) fn watched(&self, engine: &E, x: E::Rows, number: usize, watch: &E::Watch) -> E::Rows {
        if number == 0 {
            return x;
        }
        engine.watched(x, number as u32, self.attention_norm.is_some(), watch)
    }

    /// A forward of rows whose queries attend as `attend` says, given those and the rows' keys and values, neither of them turned.
    pub(super) fn step(
        &self,
        engine: &E,
        x: E::Rows,
        plan: StepPlan<'_, E>,
        given: Given<'_, E>,
        attend: impl FnOnce(E::Rows, E::Rows) -> E::Rows,
    ) -> E::Rows {
        let attend = |q, kv| Attended { output: attend(q, kv), turned: None };
        let Halfway { mut stash, carried } = self.up_to_activation(engine, x, plan, given, attend, false);
        let carried = carried.or_else(|| stash.residual.take());
        self.out_of_mlp(engine, &mut stash, carried, given, false)
    }

    /// Turns queries and keys, puts given keys and values in front, and attends.
    pub(super) fn attend(
        &self,
        engine: &E,
        (q, kv): (E::Rows, E::Rows),
        BlockPlan { step: plan, attention }: BlockPlan<'_, E>,
        given: Given<'_, E>,
    ) -> Attended<E> {
        let q = turned(engine, q, plan.heads.query, plan.query_angles, Turn::Forward);
        let mut kv = turned(engine, kv, plan.heads.key_value, plan.key_angles, Turn::Forward);
        if let Some(front) = given.keys_values {
            kv = engine.join(front, kv);
        }
        Attended { output: engine.attend(attention, &q, &kv, self.sinks.as_ref()), turned: Some((q, kv)) }
    }

    /// Keys and values of all rows as they are attended to, `[R, 2·key_heads·dim]`, and nothing else.
    pub(super) fn keys_and_values(
        &self,
        engine: &E,
        x: &E::Rows,
        plan: StepPlan<'_, E>,
        given: Given<'_, E>,
    ) -> E::Rows {
        let normed = normed(engine, self.attention_norm.as_ref(), x);
        let kv = engine.project(&self.keys_values, &normed, 0);
        let kv = self.adapt_keys_values(engine, (&normed, kv), plan.heads, given);
        let mut kv = self.scale_keys_values(engine, kv, plan.heads, given);
        if let Some(norms) = &self.head_norms {
            (kv, _) = engine.normalise_heads(&norms.keys, kv, norms.count(plan.heads.key_value));
        }
        turned(engine, kv, plan.heads.key_value, plan.key_angles, Turn::Forward)
    }

    /// The part of the forward that a backward needs.
    fn up_to_activation(
        &self,
        engine: &E,
        x: E::Rows,
        plan: StepPlan<'_, E>,
        given: Given<'_, E>,
        attend: impl FnOnce(E::Rows, E::Rows) -> Attended<E>,
        keep: bool,
    ) -> Halfway<E> {
        let normed = normed(engine, self.attention_norm.as_ref(), &x);
        let (mut q, kv) = match plan.rows {
            ActiveRows::All => engine.project_both(&self.queries, &self.keys_values, &normed),
            active => (active.project(engine, &self.queries, &normed), engine.project(&self.keys_values, &normed, 0)),
        };
        if given.has_low_rank(Module::Query) {
            let (picked, first) = plan.rows.locate(engine, &normed);
            let x = picked.as_ref().unwrap_or(&normed);
            for Adapted { tables, active, .. } in given.adapted {
                q = tables.add(engine, Module::Query, (x, first + active.start), (q, active, 0));
            }
        }
        let kv = self.adapt_keys_values(engine, (&normed, kv), plan.heads, given);
        let BlockDesign { mlp_reads, normed_residuals, .. } = self.design;
        let kept = mlp_reads == MlpReads::AttentionInput || normed_residuals;
        let active_normed = kept.then(|| plan.rows.gather(engine, &normed));
        drop(normed);
        let unscaled = given.scales_keys_values().then(|| kv.clone());
        let kv = self.scale_keys_values(engine, kv, plan.heads, given);
        let (q, kv, before_norms) = self.norm_heads(engine, q, kv, plan.heads);
        let Attended { output: attended, turned } = attend(q, kv);
        let active = match &active_normed {
            Some(normed) if normed_residuals => normed.clone(),
            _ => plan.rows.gather(engine, &x),
        };
        // What enters the MLP, if it does not wait for attention.
        let beside = match mlp_reads {
            MlpReads::AttentionInput => active_normed,
            MlpReads::Input => Some(self::normed(engine, self.mlp_norm.as_ref(), &active)),
            MlpReads::Residual => None,
        };
        // What is normed before it is added has to be there by itself.
        let (mut sum, onto) = match &self.attention_out_norm {
            None => (engine.project_onto(&self.output, &attended, active), None),
            Some(norm) => (engine.project(&self.output, &attended, 0), Some((norm, active))),
        };
        for Adapted { tables, active, .. } in given.adapted {
            sum = tables.add(engine, Module::Output, (&attended, active.start), (sum, active, 0));
        }
        let attended = given.has_low_rank(Module::Output).then_some(attended);
        let (residual, attention_out) = match onto {
            None => (sum, None),
            Some((norm, active)) => (engine.normalise_onto(norm, &sum, &active), Some(sum)),
        };
        let normed = beside.unwrap_or_else(|| self::normed(engine, self.mlp_norm.as_ref(), &residual));
        let inside = self.network.inside(engine, &normed, given, keep);
        let (residual, carried) = match mlp_reads {
            MlpReads::Residual => (Some(residual), normed_residuals.then_some(normed)),
            _ => (None, Some(residual)),
        };
        let stash = BlockStash {
            input: x,
            turned,
            unscaled,
            before_norms,
            attended,
            attention_out,
            residual,
            inside,
            mlp_out: None,
        };
        Halfway { stash, carried }
    }

    /// Adds what low-rank tables make of the normed rows to their keys and values.
    fn adapt_keys_values(
        &self,
        engine: &E,
        (normed, mut kv): (&E::Rows, E::Rows),
        heads: Heads,
        given: Given<'_, E>,
    ) -> E::Rows {
        for Adapted { tables, rows, .. } in given.adapted {
            for (module, column) in sides(heads) {
                kv = tables.add(engine, module, (normed, rows.start), (kv, rows, column));
            }
        }
        kv
    }

    fn scale_keys_values(&self, engine: &E, mut kv: E::Rows, heads: Heads, given: Given<'_, E>) -> E::Rows {
        for Adapted { tables, rows, .. } in given.adapted {
            for (module, column) in sides(heads) {
                kv = tables.scale(engine, module, kv, rows, column);
            }
        }
        kv
    }

    /// The last part of the forward. What the MLP gives is put into the stash if its norm's backward needs it.
    fn out_of_mlp(
        &self,
        engine: &E,
        stash: &mut BlockStash<E>,
        carried: Option<E::Rows>,
        given: Given<'_, E>,
        keep: bool,
    ) -> E::Rows {
        let Some(norm) = &self.mlp_out_norm else {
            return self.network.out(engine, &stash.inside, carried, given);
        };
        let out = self.network.out(engine, &stash.inside, None, given);
        let y = match carried {
            Some(carried) => engine.normalise_onto(norm, &out, &carried),
            None => engine.normalise(norm, &out),
        };
        stash.mlp_out = keep.then_some(out);
        y
    }

    /// Norms queries and keys per head, where the model does; returns what they were before, too.
    fn norm_heads(
        &self,
        engine: &E,
        q: E::Rows,
        kv: E::Rows,
        heads: Heads,
    ) -> (E::Rows, E::Rows, Option<BeforeNorms<E>>) {
        let Some(norms) = &self.head_norms else { return (q, kv, None) };
        let (q, queries) = engine.normalise_heads(&norms.queries, q, norms.count(heads.query));
        let (kv, keys) = engine.normalise_heads(&norms.keys, kv, norms.count(heads.key_value));
        (q, kv, Some(BeforeNorms { queries, keys }))
    }
}

impl<E: Engine> HeadNorms<E> {
    /// How many times the norm's width is normed, of so many heads.
    fn count(&self, heads: usize) -> usize {
        if self.whole { 1 } else { heads }
    }
}

/// The rows behind a norm, or as they are where there is none.
fn normed<E: Engine>(engine: &E, norm: Option<&E::Norm>, x: &E::Rows) -> E::Rows {
    norm.map_or_else(|| x.clone(), |norm| engine.normalise(norm, x))
}

/// The backward of [`normed`].
fn normed_back<E: Engine>(engine: &E, norm: Option<&E::Norm>, x: &E::Rows, dy: E::Rows) -> E::Rows {
    match norm {
        Some(norm) => engine.normalise_back(norm, x, dy),
        None => dy,
    }
}

/// Rotates the heads of all rows, where the block does.
fn turned<E: Engine>(engine: &E, x: E::Rows, heads: usize, angles: Option<&E::Angles>, turn: Turn) -> E::Rows {
    match angles {
        Some(angles) => engine.rotate(x, heads, angles, turn),
        None => x,
    }
}

/// Keys and values, and the columns where they begin side by side.
fn sides(heads: Heads) -> [(Module, usize); 2] {
    [(Module::Key, 0), (Module::Value, heads.key_width())]
}
