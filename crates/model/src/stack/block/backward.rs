//! The backward of a block: the gradient of its input, and of the tables that it was given.

use petals_protocol::{Module, TableKind};

use super::{BeforeNorms, Block, BlockStash, KeptBlock, Needed, sides};
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
        let stash = match kept {
            KeptBlock::Input(input) => {
                self.up_to_activation(engine, input, plan, given, |q, kv| engine.attend(attention, q, kv))
            }
            KeptBlock::Everything(stash) => *stash,
        };
        let BlockStash { input, queries, keys_values, unscaled, before_norms, attended, residual, gate_up } = stash;
        let none = WeightTables::none();
        let tables = given.adapted.first().map_or(&none, |adapted| adapted.tables);
        let mut grads = TableGrads::<E>::new();
        let d_residual = self.mlp_back(engine, gate_up, residual, dy, tables, &mut grads);
        let mut d_attended = engine.project_back(&self.output, &d_residual);
        if let Some(attended) = attended {
            let d_low = tables.gradients(engine, Module::Output, (&attended, 0), (&d_residual, 0), &mut grads);
            d_attended = tables.add_back(engine, Module::Output, d_low.as_ref(), (d_attended, 0));
        }
        // Where tables adapt the rows, their gradients come from all of them.
        let prefix_only = needed != Needed::All && tables.is_empty();
        let (dq, mut dkv) = engine.attend_back(attention, &queries, &keys_values, &d_attended, prefix_only);
        drop((queries, keys_values, d_attended));
        if let Some(front) = given.keys_values {
            let (d_front, rest) = engine.split(dkv, engine.height(front));
            grads.push((TableKind::KeysValues, d_front));
            dkv = rest;
        }
        if needed == Needed::Nothing && tables.is_empty() {
            return (None, grads);
        }
        let dq = engine.rotate(dq, plan.heads.query, plan.query_angles, Turn::Back);
        let dkv = engine.rotate(dkv, plan.heads.key_value, plan.key_angles, Turn::Back);
        let (dq, mut dkv) = self.norm_heads_back(engine, before_norms, (dq, dkv), plan.heads);
        if let Some(unscaled) = unscaled {
            for (module, column) in sides(plan.heads) {
                dkv = tables.scale_back(engine, module, &unscaled, (dkv, column), &mut grads);
            }
        }
        let low = self.low_gradients(engine, &input, (&dq, &dkv), plan, tables, &mut grads);
        (self.to_input(engine, input, (dq, dkv, d_residual), plan.rows, (tables, low), needed), grads)
    }

    /// The gradient of the MLP's input and of what its residual carries past it, `[A, d]`.
    fn mlp_back(
        &self,
        engine: &E,
        gate_up: E::Rows,
        residual: E::Rows,
        dy: E::Rows,
        tables: &WeightTables<E>,
        grads: &mut TableGrads<E>,
    ) -> E::Rows {
        let mut d_activated = engine.project_back(&self.down, &dy);
        if tables.has_low_rank(Module::Down) || tables.has_scale(Module::Down) {
            let activated = engine.swiglu(&gate_up);
            let d_low = tables.gradients(engine, Module::Down, (&activated, 0), (&dy, 0), grads);
            d_activated = tables.add_back(engine, Module::Down, d_low.as_ref(), (d_activated, 0));
            d_activated = tables.scale_back(engine, Module::Down, &activated, (d_activated, 0), grads);
        }
        let d_gate_up = engine.swiglu_back(gate_up, &d_activated);
        drop(d_activated);
        let mut d_normed = engine.project_back(&self.gate_up, &d_gate_up);
        if tables.has_low_rank(Module::Gate) || tables.has_low_rank(Module::Up) {
            let normed = engine.normalise(&self.mlp_norm, &residual);
            let half = engine.width(&d_gate_up) / 2;
            for (module, column) in [(Module::Gate, 0), (Module::Up, half)] {
                let d_low = tables.gradients(engine, module, (&normed, 0), (&d_gate_up, column), grads);
                d_normed = tables.add_back(engine, module, d_low.as_ref(), (d_normed, 0));
            }
        }
        drop(d_gate_up);
        engine.add(engine.normalise_back(&self.mlp_norm, &residual, d_normed), &dy, 0)
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
        let normed = engine.normalise(&self.input_norm, input);
        let (picked, first) = plan.rows.locate(engine, &normed);
        let x = (picked.as_ref().unwrap_or(&normed), first);
        let queries = tables.gradients(engine, Module::Query, x, (dq, 0), grads);
        let sides = sides(plan.heads);
        let sides = sides.map(|(module, column)| tables.gradients(engine, module, (&normed, 0), (dkv, column), grads));
        LowGrads { queries, sides }
    }

    /// From the gradients of queries, keys and values, and of what the residual carries past them, to the input's.
    fn to_input(
        &self,
        engine: &E,
        mut input: E::Rows,
        (mut dq, mut dkv, mut d_residual): (E::Rows, E::Rows, E::Rows),
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
                    (dq, d_residual) = (first(dq), first(d_residual));
                    low.queries = low.queries.map(first);
                }
            }
        }
        let mut d_normed = engine.project_back(&self.keys_values, &dkv);
        for (module, d_low) in [Module::Key, Module::Value].into_iter().zip(&low.sides) {
            d_normed = tables.add_back(engine, module, d_low.as_ref(), (d_normed, 0));
        }
        if !prefix_is_active {
            return Some(engine.normalise_back(&self.input_norm, &input, d_normed));
        }
        d_normed = self.queries_back(engine, &dq, d_normed, active, (tables, low.queries.as_ref()));
        Some(active.add(engine, engine.normalise_back(&self.input_norm, &input, d_normed), &d_residual))
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
        let dq = engine.normalise_heads_back(&norms.queries, &before.queries, dq, heads.query);
        (dq, engine.normalise_heads_back(&norms.keys, &before.keys, dkv, heads.key_value))
    }
}

/// Gradients `[rows, rank]` between the low-rank tables: `dy·Bᵀ`.
struct LowGrads<E: Engine> {
    /// Of the active rows.
    queries: Option<E::Rows>,
    /// Keys' and values', of all rows.
    sides: [Option<E::Rows>; 2],
}
