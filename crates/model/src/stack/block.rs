//! One transformer block with frozen weights: its forward, and what that keeps. `R` rows, `A` of them active.
//!
//! Tables that travel with a pass may adapt the weights, and keys and values may lie in front of those of the rows ([`Given`]).

use petals_protocol::Module;

use super::plan::{BlockPlan, StepPlan};
use super::tables::{Adapted, Given};
use crate::engine::Engine;
use crate::engine::rotary::Turn;
use crate::engine::shapes::Heads;

mod backward;

/// The weights of one block.
///
/// Keys and values share a weight, and so do gate and up. Queries have their own, because they are computed for the
/// active rows only.
#[derive(Debug)]
pub(super) struct Block<E: Engine> {
    pub(super) input_norm: E::Norm,
    pub(super) queries: E::Linear,
    pub(super) keys_values: E::Linear,
    pub(super) head_norms: Option<HeadNorms<E>>,
    pub(super) output: E::Linear,
    pub(super) mlp_norm: E::Norm,
    pub(super) gate_up: E::Linear,
    pub(super) down: E::Linear,
}

/// Norms of every head of queries and of keys.
#[derive(Debug)]
pub(super) struct HeadNorms<E: Engine> {
    pub(super) queries: E::Norm,
    pub(super) keys: E::Norm,
}

/// What a block's backward needs.
#[derive(Debug)]
pub(super) struct BlockStash<E: Engine> {
    /// Input, `[R, d]`.
    input: E::Rows,
    /// Queries as they attend, `[A, query_heads·dim]`.
    queries: E::Rows,
    /// Keys and values as they are attended to, `[R, 2·key_heads·dim]`; more rows if some are given.
    keys_values: E::Rows,
    /// Keys and values before they were scaled, `[R, 2·key_heads·dim]`, if any are.
    unscaled: Option<E::Rows>,
    /// Queries and keys before their norms, if the model has those.
    before_norms: Option<BeforeNorms<E>>,
    /// What was attended to, `[A, query_heads·dim]`, if what it goes through is adapted.
    attended: Option<E::Rows>,
    /// Input of the MLP's norm, `[A, d]`.
    residual: E::Rows,
    /// Gate and up before the activation, `[A, 2·intermediate]`.
    gate_up: E::Rows,
}

#[derive(Debug)]
struct BeforeNorms<E: Engine> {
    /// `[A, query_heads·dim]`
    queries: E::Rows,
    /// `[R, key_heads·dim]`
    keys: E::Rows,
}

/// What a forward keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward.
    Nothing,
    /// What enters each block. The backward repeats the forward block by block, with one block's saved tensors at a time.
    Inputs,
    /// All that the backward needs.
    Everything,
}

/// What is saved of one block.
#[derive(Debug)]
pub(super) enum KeptBlock<E: Engine> {
    /// What enters it, `[R, d]`.
    Input(E::Rows),
    Everything(Box<BlockStash<E>>),
}

/// Which rows of the input's gradient are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    All,
    /// The first so many.
    Prefix(usize),
    /// None: only the tables' gradients are.
    Nothing,
}

impl<E: Engine> BlockStash<E> {
    fn bytes(&self) -> u64 {
        let Self { input, queries, keys_values, unscaled, before_norms, attended, residual, gate_up } = self;
        let always = [input, queries, keys_values, residual, gate_up].map(E::bytes).iter().sum::<u64>();
        let adapted = [unscaled, attended].map(|rows| rows.as_ref().map_or(0, E::bytes)).iter().sum::<u64>();
        always + adapted + before_norms.as_ref().map_or(0, |before| E::bytes(&before.queries) + E::bytes(&before.keys))
    }

    /// Input and input of the MLP's norm; the rest is freed.
    fn into_ends(self) -> (E::Rows, E::Rows) {
        (self.input, self.residual)
    }
}

impl<E: Engine> KeptBlock<E> {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Input(input) => E::bytes(input),
            Self::Everything(stash) => stash.bytes(),
        }
    }

    /// What entered the block.
    pub(super) fn input(&self) -> &E::Rows {
        match self {
            Self::Input(input) => input,
            Self::Everything(stash) => &stash.input,
        }
    }

    /// The input alone.
    pub(super) fn reduce(self) -> Self {
        match self {
            Self::Everything(stash) => Self::Input(stash.into_ends().0),
            input @ Self::Input(_) => input,
        }
    }
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
        let stash = self.up_to_activation(engine, x, plan.step, given, |q, kv| engine.attend(plan.attention, q, kv));
        let activated = engine.swiglu(&stash.gate_up);
        let (residual, kept) = match keep {
            Keep::Nothing => (stash.into_ends().1, None),
            Keep::Inputs => {
                let (input, residual) = stash.into_ends();
                (residual, Some(KeptBlock::Input(input)))
            }
            Keep::Everything => (stash.residual.clone(), Some(KeptBlock::Everything(Box::new(stash)))),
        };
        (self.out_of_mlp(engine, activated, residual, given), kept)
    }

    /// A forward of rows whose queries attend as `attend` says, given those and the rows' keys and values.
    pub(super) fn step(
        &self,
        engine: &E,
        x: E::Rows,
        plan: StepPlan<'_, E>,
        given: Given<'_, E>,
        attend: impl FnOnce(&E::Rows, &E::Rows) -> E::Rows,
    ) -> E::Rows {
        let stash = self.up_to_activation(engine, x, plan, given, attend);
        let activated = engine.swiglu(&stash.gate_up);
        let (_, residual) = stash.into_ends();
        self.out_of_mlp(engine, activated, residual, given)
    }

    /// Keys and values of all rows as they are attended to, `[R, 2·key_heads·dim]`, and nothing else.
    pub(super) fn keys_and_values(
        &self,
        engine: &E,
        x: &E::Rows,
        plan: StepPlan<'_, E>,
        given: Given<'_, E>,
    ) -> E::Rows {
        let normed = engine.normalise(&self.input_norm, x);
        let kv = self.project_keys_values(engine, &normed, plan.heads, given);
        let mut kv = self.scale_keys_values(engine, kv, plan.heads, given);
        if let Some(norms) = &self.head_norms {
            (kv, _) = engine.normalise_heads(&norms.keys, kv, plan.heads.key_value);
        }
        engine.rotate(kv, plan.heads.key_value, plan.key_angles, Turn::Forward)
    }

    /// The part of the forward that a backward needs.
    fn up_to_activation(
        &self,
        engine: &E,
        x: E::Rows,
        plan: StepPlan<'_, E>,
        given: Given<'_, E>,
        attend: impl FnOnce(&E::Rows, &E::Rows) -> E::Rows,
    ) -> BlockStash<E> {
        let normed = engine.normalise(&self.input_norm, &x);
        let mut q = plan.rows.project(engine, &self.queries, &normed);
        if given.has_low_rank(Module::Query) {
            let (picked, first) = plan.rows.locate(engine, &normed);
            let x = picked.as_ref().unwrap_or(&normed);
            for Adapted { tables, active, .. } in given.adapted {
                q = tables.add(engine, Module::Query, (x, first + active.start), (q, active, 0));
            }
        }
        let kv = self.project_keys_values(engine, &normed, plan.heads, given);
        drop(normed);
        let unscaled = given.scales_keys_values().then(|| kv.clone());
        let kv = self.scale_keys_values(engine, kv, plan.heads, given);
        let (q, kv, before_norms) = self.norm_heads(engine, q, kv, plan.heads);
        let q = engine.rotate(q, plan.heads.query, plan.query_angles, Turn::Forward);
        let mut kv = engine.rotate(kv, plan.heads.key_value, plan.key_angles, Turn::Forward);
        if let Some(front) = given.keys_values {
            kv = engine.join(front, kv);
        }
        let attended = attend(&q, &kv);
        let mut residual = engine.project_onto(&self.output, &attended, plan.rows.gather(engine, &x));
        for Adapted { tables, active, .. } in given.adapted {
            residual = tables.add(engine, Module::Output, (&attended, active.start), (residual, active, 0));
        }
        let attended = given.has_low_rank(Module::Output).then_some(attended);
        let normed = engine.normalise(&self.mlp_norm, &residual);
        let mut gate_up = engine.project(&self.gate_up, &normed, 0);
        let half = engine.width(&gate_up) / 2;
        for Adapted { tables, active, .. } in given.adapted {
            for (module, column) in [(Module::Gate, 0), (Module::Up, half)] {
                gate_up = tables.add(engine, module, (&normed, active.start), (gate_up, active, column));
            }
        }
        BlockStash { input: x, queries: q, keys_values: kv, unscaled, before_norms, attended, residual, gate_up }
    }

    /// Keys and values of the normed rows, before they are scaled, normed and turned.
    fn project_keys_values(&self, engine: &E, normed: &E::Rows, heads: Heads, given: Given<'_, E>) -> E::Rows {
        let mut kv = engine.project(&self.keys_values, normed, 0);
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

    /// The last part of the forward.
    fn out_of_mlp(&self, engine: &E, mut activated: E::Rows, residual: E::Rows, given: Given<'_, E>) -> E::Rows {
        for Adapted { tables, active, .. } in given.adapted {
            activated = tables.scale(engine, Module::Down, activated, active, 0);
        }
        let mut y = engine.project_onto(&self.down, &activated, residual);
        for Adapted { tables, active, .. } in given.adapted {
            y = tables.add(engine, Module::Down, (&activated, active.start), (y, active, 0));
        }
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
        let (q, queries) = engine.normalise_heads(&norms.queries, q, heads.query);
        let (kv, keys) = engine.normalise_heads(&norms.keys, kv, heads.key_value);
        (q, kv, Some(BeforeNorms { queries, keys }))
    }
}

/// Keys and values, and the columns where they begin side by side.
fn sides(heads: Heads) -> [(Module, usize); 2] {
    [(Module::Key, 0), (Module::Value, heads.key_width())]
}
