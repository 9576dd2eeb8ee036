//! The backward of a block: the gradient of its input, and of the tables that it was given.

use petals_protocol::{Module, TableKind};

use super::{BeforeNorms, Block, BlockStash, KeptBlock, Needed, normed, normed_back, sides, turned};
use crate::config::MlpReads;
use crate::engine::Engine;
use crate::engine::rotary::Turn;
use crate::engine::shapes::Heads;
use crate::stack::plan::{BlockPlan, StepPlan};
use crate::stack::rows::ActiveRows;
use crate::stack::tables::{Given, TableGrads, WeightTables};

/// Gradients of a block's input, as far as they are needed, and of its tables.
pub(in crate::stack) type BlockGrads<E> = (Option<<E as Engine>::Rows>, TableGrads<E>);

impl<E: Engine> Block<E> {
    /// The input's gradient, `[R, d]` or `[m, d]` as `needed`, and those of the tables, from that of the output, `[A, d]`. If only the input was
    /// kept, the forward is repeated as far as needed. All rows have the same tables.
    pub(in crate::stack) fn backward(
        &self,
        engine: &E,
        kept: KeptBlock<E>,
        dy: E::Rows,
        BlockPlan { step: plan, attention }: BlockPlan<'_, E>,
        given: Given<'_, E>,
        needed: Needed,
    ) -> BlockGrads<E> {
        let mut stash = match kept {
            KeptBlock::Input(input) => {
                let attend = |q, kv| self.attend(engine, (q, kv), BlockPlan { step: plan, attention }, given);
                self.up_to_activation(engine, input, plan, given, attend, true).stash
            }
            KeptBlock::Everything(stash) => *stash,
        };
        let none = WeightTables::none();
        let tables = given.adapted.first().map_or(&none, |adapted| adapted.tables);
        let mut grads = TableGrads::<E>::new();
        let d_mlp_out = match &self.mlp_out_norm {
            None => None,
            Some(norm) => {
                // A backward from inputs alone has not computed it.
                let out = stash.mlp_out.take();
                let out = out.unwrap_or_else(|| self.network.out(engine, &stash.inside, None, given));
                Some(engine.normalise_back(norm, &out, dy.clone()))
            }
        };
        let BlockStash { input, turned: kept, unscaled, before_norms, attended, attention_out, residual, .. } = stash;
        let normed_again = || self.mlp_input(engine, &input, residual.as_ref(), plan.rows);
        let d_mlp_out = d_mlp_out.as_ref().unwrap_or(&dy);
        let d_mlp_in = self.network.back(engine, stash.inside, d_mlp_out, normed_again, (tables, &mut grads));
        let Behind { d_attention, skipped, shared } =
            self.behind_attention(engine, (&input, residual), dy, d_mlp_in, plan);
        let d_output = match (&self.attention_out_norm, attention_out) {
            (Some(norm), Some(out)) => {
                Some(engine.normalise_back(norm, &out, d_attention.unwrap_or_else(|| skipped.clone())))
            }
            _ => d_attention,
        };
        let d_output = d_output.as_ref().unwrap_or(&skipped);
        let mut d_attended = engine.project_back(&self.output, d_output);
        if let Some(attended) = attended {
            let d_low = tables.gradients(engine, Module::Output, (&attended, 0), (d_output, 0), &mut grads);
            d_attended = tables.add_back(engine, Module::Output, d_low.as_ref(), (d_attended, 0));
        }
        // Where tables adapt the rows, their gradients come from all of them.
        let prefix_only = needed != Needed::All && tables.is_empty();
        let Some((queries, keys_values)) = kept else { unreachable!("a pass keeps what it turned") };
        let inputs = (&queries, &keys_values, self.sinks.as_ref());
        let (dq, mut dkv) = engine.attend_back(attention, inputs, &d_attended, prefix_only);
        drop((queries, keys_values, d_attended));
        if let Some(front) = given.keys_values {
            let (d_front, rest) = engine.split(dkv, engine.height(front));
            grads.push((TableKind::KeysValues, d_front));
            dkv = rest;
        }
        if needed == Needed::Nothing && tables.is_empty() {
            return (None, grads);
        }
        let dq = turned(engine, dq, plan.heads.query, plan.query_angles, Turn::Back);
        let dkv = turned(engine, dkv, plan.heads.key_value, plan.key_angles, Turn::Back);
        let (dq, mut dkv) = self.norm_heads_back(engine, before_norms, (dq, dkv), plan.heads);
        if let Some(unscaled) = unscaled {
            for (module, column) in sides(plan.heads) {
                dkv = tables.scale_back(engine, module, &unscaled, (dkv, column), &mut grads);
            }
        }
        let low = self.low_gradients(engine, &input, (&dq, &dkv), plan, tables, &mut grads);
        let arriving = Arriving { dq, dkv, skipped, shared };
        (self.to_input(engine, input, arriving, plan.rows, (tables, low), needed), grads)
    }

    /// What entered the MLP, `[A, d]`, once more.
    fn mlp_input(&self, engine: &E, input: &E::Rows, residual: Option<&E::Rows>, active: &ActiveRows<E>) -> E::Rows {
        match (self.design.mlp_reads, residual) {
            (MlpReads::AttentionInput, _) => {
                active.gather(engine, &normed(engine, self.attention_norm.as_ref(), input))
            }
            (MlpReads::Residual, Some(residual)) => normed(engine, self.mlp_norm.as_ref(), residual),
            _ => normed(engine, self.mlp_norm.as_ref(), &active.gather(engine, input)),
        }
    }

    /// What the gradient `d_mlp_in` of what entered the MLP becomes, beside that of the block's output.
    fn behind_attention(
        &self,
        engine: &E,
        (input, residual): (&E::Rows, Option<E::Rows>),
        dy: E::Rows,
        d_mlp_in: E::Rows,
        plan: StepPlan<'_, E>,
    ) -> Behind<E> {
        let norm = self.mlp_norm.as_ref();
        match (self.design.mlp_reads, residual) {
            (MlpReads::AttentionInput, _) => Behind { d_attention: None, skipped: dy, shared: Some(d_mlp_in) },
            (MlpReads::Residual, Some(residual)) => {
                let skipped = match self.design.normed_residuals {
                    false => engine.add(normed_back(engine, norm, &residual, d_mlp_in), &dy, 0),
                    true => normed_back(engine, norm, &residual, engine.add(d_mlp_in, &dy, 0)),
                };
                Behind { d_attention: None, skipped, shared: None }
            }
            _ => {
                let active = plan.rows.gather(engine, input);
                let skipped = engine.add(normed_back(engine, norm, &active, d_mlp_in), &dy, 0);
                Behind { d_attention: Some(dy), skipped, shared: None }
            }
        }
    }

    /// The gradients of the tables of queries, keys and values, and what goes on through them to the normed input.
    fn low_gradients(
        &self,
        engine: &E,
        input: &E::Rows,
        (dq, dkv): (&E::Rows, &E::Rows),
        plan: StepPlan<'_, E>,
        tables: &WeightTables<E>,
        grads: &mut TableGrads<E>,
    ) -> LowGrads<E> {
        if ![Module::Query, Module::Key, Module::Value].iter().any(|module| tables.has_low_rank(*module)) {
            return LowGrads { queries: None, sides: [None, None] };
        }
        let normed = normed(engine, self.attention_norm.as_ref(), input);
        let (picked, first) = plan.rows.locate(engine, &normed);
        let x = (picked.as_ref().unwrap_or(&normed), first);
        let queries = tables.gradients(engine, Module::Query, x, (dq, 0), grads);
        let sides = sides(plan.heads);
        let sides = sides.map(|(module, column)| tables.gradients(engine, module, (&normed, 0), (dkv, column), grads));
        LowGrads { queries, sides }
    }

    /// From the gradients that arrive behind the block's input to the input's.
    fn to_input(
        &self,
        engine: &E,
        mut input: E::Rows,
        Arriving { mut dq, mut dkv, mut skipped, mut shared }: Arriving<E>,
        active: &ActiveRows<E>,
        (tables, mut low): (&WeightTables<E>, LowGrads<E>),
        needed: Needed,
    ) -> Option<E::Rows> {
        let mut prefix_is_active = true;
        match needed {
            Needed::All => {}
            Needed::Nothing => return None,
            Needed::Prefix(m) => {
                let first = |rows: E::Rows| engine.first(rows, m);
                prefix_is_active = matches!(active, ActiveRows::All);
                (input, dkv) = (first(input), first(dkv));
                low.sides = low.sides.map(|rows| rows.map(first));
                if prefix_is_active {
                    (dq, skipped, shared) = (first(dq), first(skipped), shared.map(first));
                    low.queries = low.queries.map(first);
                }
            }
        }
        let norm = self.attention_norm.as_ref();
        let mut d_normed = engine.project_back(&self.keys_values, &dkv);
        for (module, d_low) in [Module::Key, Module::Value].into_iter().zip(&low.sides) {
            d_normed = tables.add_back(engine, module, d_low.as_ref(), (d_normed, 0));
        }
        if !prefix_is_active {
            return Some(normed_back(engine, norm, &input, d_normed));
        }
        d_normed = self.queries_back(engine, &dq, d_normed, active, (tables, low.queries.as_ref()));
        if let Some(shared) = shared {
            d_normed = active.add(engine, d_normed, &shared);
        }
        if self.design.normed_residuals {
            d_normed = active.add(engine, d_normed, &skipped);
            return Some(normed_back(engine, norm, &input, d_normed));
        }
        Some(active.add(engine, normed_back(engine, norm, &input, d_normed), &skipped))
    }

    /// Adds what comes through the queries to the gradient of the normed input.
    fn queries_back(
        &self,
        engine: &E,
        dq: &E::Rows,
        d_normed: E::Rows,
        active: &ActiveRows<E>,
        (tables, d_low): (&WeightTables<E>, Option<&E::Rows>),
    ) -> E::Rows {
        match active {
            ActiveRows::Picked(picked) if d_low.is_some() => {
                let of_picked = engine.project_back(&self.queries, dq);
                let of_picked = tables.add_back(engine, Module::Query, d_low, (of_picked, 0));
                engine.add_picked(d_normed, &of_picked, picked)
            }
            _ => {
                let first = if let ActiveRows::Behind(first) = active { *first } else { 0 };
                let d_normed = active.project_back(engine, &self.queries, dq, d_normed);
                tables.add_back(engine, Module::Query, d_low, (d_normed, first))
            }
        }
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
        let dq = engine.normalise_heads_back(&norms.queries, &before.queries, dq, norms.count(heads.query));
        (dq, engine.normalise_heads_back(&norms.keys, &before.keys, dkv, norms.count(heads.key_value)))
    }
}

/// Gradients behind a block's attention.
struct Behind<E: Engine> {
    /// Of what attention added, `[A, d]`, if it is not [`Self::skipped`].
    d_attention: Option<E::Rows>,
    /// Of the input, past attention, `[A, d]`.
    skipped: E::Rows,
    /// Of the normed input that attention and MLP share, `[A, d]`, if they do.
    shared: Option<E::Rows>,
}

/// Gradients that arrive at a block's input.
struct Arriving<E: Engine> {
    dq: E::Rows,
    dkv: E::Rows,
    skipped: E::Rows,
    shared: Option<E::Rows>,
}

/// Gradients `[rows, rank]` between the low-rank tables: `dy·Bᵀ`.
struct LowGrads<E: Engine> {
    /// Of the active rows.
    queries: Option<E::Rows>,
    /// Keys' and values', of all rows.
    sides: [Option<E::Rows>; 2],
}
