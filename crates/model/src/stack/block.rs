//! One transformer block with frozen weights: its forward, what that keeps, and its backward. `R` rows, `A` of them active.

use super::plan::{BlockPlan, StepPlan};
use super::rows::ActiveRows;
use crate::engine::Engine;
use crate::engine::rotary::Turn;
use crate::engine::shapes::Heads;

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
    /// Keys and values as they are attended to, `[R, 2·key_heads·dim]`.
    keys_values: E::Rows,
    /// Queries and keys before their norms, if the model has those.
    before_norms: Option<BeforeNorms<E>>,
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
}

impl<E: Engine> BlockStash<E> {
    fn bytes(&self) -> u64 {
        let Self { input, queries, keys_values, before_norms, residual, gate_up } = self;
        let always = [input, queries, keys_values, residual, gate_up].map(E::bytes).iter().sum::<u64>();
        always + before_norms.as_ref().map_or(0, |before| E::bytes(&before.queries) + E::bytes(&before.keys))
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
        keep: Keep,
    ) -> (E::Rows, Option<KeptBlock<E>>) {
        let stash = self.up_to_activation(engine, x, plan.step, |q, kv| engine.attend(plan.attention, q, kv));
        let activated = engine.swiglu(&stash.gate_up);
        let (residual, kept) = match keep {
            Keep::Nothing => (stash.into_ends().1, None),
            Keep::Inputs => {
                let (input, residual) = stash.into_ends();
                (residual, Some(KeptBlock::Input(input)))
            }
            Keep::Everything => (stash.residual.clone(), Some(KeptBlock::Everything(Box::new(stash)))),
        };
        (engine.project_onto(&self.down, &activated, residual), kept)
    }

    /// A forward of rows whose queries attend as `attend` says, given those and the rows' keys and values.
    pub(super) fn step(
        &self,
        engine: &E,
        x: E::Rows,
        plan: StepPlan<'_, E>,
        attend: impl FnOnce(&E::Rows, &E::Rows) -> E::Rows,
    ) -> E::Rows {
        let stash = self.up_to_activation(engine, x, plan, attend);
        let activated = engine.swiglu(&stash.gate_up);
        let (_, residual) = stash.into_ends();
        engine.project_onto(&self.down, &activated, residual)
    }

    /// Keys and values of all rows as they are attended to, `[R, 2·key_heads·dim]`, and nothing else.
    pub(super) fn keys_and_values(&self, engine: &E, x: &E::Rows, plan: StepPlan<'_, E>) -> E::Rows {
        let mut kv = engine.project(&self.keys_values, &engine.normalise(&self.input_norm, x), 0);
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
        attend: impl FnOnce(&E::Rows, &E::Rows) -> E::Rows,
    ) -> BlockStash<E> {
        let normed = engine.normalise(&self.input_norm, &x);
        let q = plan.rows.project(engine, &self.queries, &normed);
        let kv = engine.project(&self.keys_values, &normed, 0);
        drop(normed);
        let (q, kv, before_norms) = self.norm_heads(engine, q, kv, plan.heads);
        let q = engine.rotate(q, plan.heads.query, plan.query_angles, Turn::Forward);
        let kv = engine.rotate(kv, plan.heads.key_value, plan.key_angles, Turn::Forward);
        let attended = attend(&q, &kv);
        let residual = engine.project_onto(&self.output, &attended, plan.rows.gather(engine, &x));
        drop(attended);
        let normed = engine.normalise(&self.mlp_norm, &residual);
        let gate_up = engine.project(&self.gate_up, &normed, 0);
        BlockStash { input: x, queries: q, keys_values: kv, before_norms, residual, gate_up }
    }

    /// The input's gradient, `[R, d]` or `[m, d]` as `needed`, from that of the output, `[A, d]`. If only the input was
    /// kept, the forward is repeated as far as needed.
    pub(super) fn backward(
        &self,
        engine: &E,
        kept: KeptBlock<E>,
        dy: E::Rows,
        BlockPlan { step: plan, attention }: BlockPlan<'_, E>,
        needed: Needed,
    ) -> E::Rows {
        let stash = match kept {
            KeptBlock::Input(input) => {
                self.up_to_activation(engine, input, plan, |q, kv| engine.attend(attention, q, kv))
            }
            KeptBlock::Everything(stash) => *stash,
        };
        let BlockStash { input, queries, keys_values, before_norms, residual, gate_up } = stash;
        let d_gate_up = engine.swiglu_back(gate_up, &engine.project_back(&self.down, &dy));
        let d_normed = engine.project_back(&self.gate_up, &d_gate_up);
        drop(d_gate_up);
        let d_residual = engine.add(engine.normalise_back(&self.mlp_norm, &residual, d_normed), &dy, 0);
        drop((residual, dy));
        let d_attended = engine.project_back(&self.output, &d_residual);
        let prefix_only = needed != Needed::All;
        let (dq, dkv) = engine.attend_back(attention, &queries, &keys_values, &d_attended, prefix_only);
        drop((queries, keys_values, d_attended));
        let dq = engine.rotate(dq, plan.heads.query, plan.query_angles, Turn::Back);
        let dkv = engine.rotate(dkv, plan.heads.key_value, plan.key_angles, Turn::Back);
        let (dq, dkv) = self.norm_heads_back(engine, before_norms, (dq, dkv), plan.heads);
        self.to_input(engine, input, (dq, dkv, d_residual), plan.rows, needed)
    }

    /// From the gradients of queries, keys and values, and of what the residual carries past them, to the input's.
    fn to_input(
        &self,
        engine: &E,
        mut input: E::Rows,
        (mut dq, mut dkv, mut d_residual): (E::Rows, E::Rows, E::Rows),
        active: &ActiveRows<E>,
        needed: Needed,
    ) -> E::Rows {
        let mut prefix_is_active = true;
        if let Needed::Prefix(m) = needed {
            let first = |rows: E::Rows| engine.first(rows, m);
            prefix_is_active = matches!(active, ActiveRows::All);
            (input, dkv) = (first(input), first(dkv));
            if prefix_is_active {
                (dq, d_residual) = (first(dq), first(d_residual));
            }
        }
        let d_normed = engine.project_back(&self.keys_values, &dkv);
        if !prefix_is_active {
            return engine.normalise_back(&self.input_norm, &input, d_normed);
        }
        let d_normed = active.project_back(engine, &self.queries, &dq, d_normed);
        active.add(engine, engine.normalise_back(&self.input_norm, &input, d_normed), &d_residual)
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

    /// The backward of [`Self::norm_heads`], on gradients.
    fn norm_heads_back(
        &self,
        engine: &E,
        before: Option<BeforeNorms<E>>,
        (dq, dkv): (E::Rows, E::Rows),
        heads: Heads,
    ) -> (E::Rows, E::Rows) {
        let (Some(norms), Some(before)) = (&self.head_norms, before) else { return (dq, dkv) };
        let dq = engine.normalise_heads_back(&norms.queries, &before.queries, dq, heads.query);
        (dq, engine.normalise_heads_back(&norms.keys, &before.keys, dkv, heads.key_value))
    }
}
