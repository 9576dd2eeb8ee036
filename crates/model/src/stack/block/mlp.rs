//! A dense MLP with frozen weights, alone or with adapted ones.

use petals_protocol::Module;

use crate::config::MlpDesign;
use crate::engine::Engine;
use crate::stack::tables::{Adapted, Given, TableGrads, WeightTables};

/// `down(act(gate(x)) ∘ up(x))`, or without a gate.
#[derive(Debug)]
pub(in crate::stack) struct Mlp<E: Engine> {
    pub(in crate::stack) design: MlpDesign,
    /// Gate beside up, or up alone.
    pub(in crate::stack) inside: E::Linear,
    pub(in crate::stack) down: E::Linear,
}

impl<E: Engine> Mlp<E> {
    /// What `x` is before the activation.
    pub(super) fn inside(&self, engine: &E, x: &E::Rows) -> E::Rows {
        engine.project(&self.inside, x, 0)
    }

    /// What `x` is behind the activation.
    pub(super) fn activated(&self, engine: &E, x: &E::Rows) -> E::Rows {
        engine.project_activated(self.design, &self.inside, x)
    }

    /// What comes out, added to `sum` if there is one.
    pub(super) fn down(&self, engine: &E, activated: &E::Rows, sum: Option<E::Rows>) -> E::Rows {
        match sum {
            Some(sum) => engine.project_onto(&self.down, activated, sum),
            None => engine.project(&self.down, activated, 0),
        }
    }

    /// What comes out.
    pub(super) fn out(&self, engine: &E, inside: &E::Rows) -> E::Rows {
        engine.project(&self.down, &engine.activate(self.design, inside), 0)
    }

    /// The gradient of the input from that of what comes out.
    pub(super) fn back(&self, engine: &E, inside: E::Rows, dy: &E::Rows) -> E::Rows {
        self.inside_back(engine, inside, &engine.project_back(&self.down, dy))
    }

    /// The gradient of what the activation gives, from that of what comes out, and the products of each row of what comes out with its own.
    pub(super) fn weighed_back(&self, engine: &E, inside: &E::Rows, dy: &E::Rows, bias: bool) -> (E::Rows, E::Rows) {
        let (activated, d_activated) = (engine.activate(self.design, inside), engine.project_back(&self.down, dy));
        let along = match bias {
            // Without a bias `(a·W)·dy` is `a·(dy·Wᵀ)`, which is there.
            false => engine.dot_rows(&activated, &d_activated),
            true => engine.dot_rows(&engine.project(&self.down, &activated, 0), dy),
        };
        (d_activated, along)
    }

    /// The gradient of the input from that of what the activation gives.
    pub(super) fn inside_back(&self, engine: &E, inside: E::Rows, d_activated: &E::Rows) -> E::Rows {
        engine.project_back(&self.inside, &engine.activate_back(self.design, inside, d_activated))
    }

    /// The modules of the inside, with the columns where they begin.
    fn sides(&self, engine: &E, inside: &E::Rows) -> Vec<(Module, usize)> {
        match self.design.gated {
            true => vec![(Module::Gate, 0), (Module::Up, engine.width(inside) / 2)],
            false => vec![(Module::Up, 0)],
        }
    }

    pub(super) fn adapted_inside(&self, engine: &E, normed: &E::Rows, given: Given<'_, E>) -> E::Rows {
        let mut inside = self.inside(engine, normed);
        let sides = self.sides(engine, &inside);
        for Adapted { tables, active, .. } in given.adapted {
            for &(module, column) in &sides {
                inside = tables.add(engine, module, (normed, active.start), (inside, active, column));
            }
        }
        inside
    }

    pub(super) fn adapted_out(
        &self,
        engine: &E,
        inside: &E::Rows,
        sum: Option<E::Rows>,
        given: Given<'_, E>,
    ) -> E::Rows {
        let mut activated = engine.activate(self.design, inside);
        for Adapted { tables, active, .. } in given.adapted {
            activated = tables.scale(engine, Module::Down, activated, active, 0);
        }
        let mut y = self.down(engine, &activated, sum);
        for Adapted { tables, active, .. } in given.adapted {
            y = tables.add(engine, Module::Down, (&activated, active.start), (y, active, 0));
        }
        y
    }

    pub(super) fn adapted_back(
        &self,
        engine: &E,
        inside: E::Rows,
        dy: &E::Rows,
        normed: impl FnOnce() -> E::Rows,
        (tables, grads): (&WeightTables<E>, &mut TableGrads<E>),
    ) -> E::Rows {
        let mut d_activated = engine.project_back(&self.down, dy);
        if tables.has_low_rank(Module::Down) || tables.has_scale(Module::Down) {
            let activated = engine.activate(self.design, &inside);
            let d_low = tables.gradients(engine, Module::Down, (&activated, 0), (dy, 0), grads);
            d_activated = tables.add_back(engine, Module::Down, d_low.as_ref(), (d_activated, 0));
            d_activated = tables.scale_back(engine, Module::Down, &activated, (d_activated, 0), grads);
        }
        let sides = self.sides(engine, &inside);
        let d_inside = engine.activate_back(self.design, inside, &d_activated);
        drop(d_activated);
        let mut d_normed = engine.project_back(&self.inside, &d_inside);
        if sides.iter().any(|(module, _)| tables.has_low_rank(*module)) {
            let normed = normed();
            for (module, column) in sides {
                let d_low = tables.gradients(engine, module, (&normed, 0), (&d_inside, column), grads);
                d_normed = tables.add_back(engine, module, d_low.as_ref(), (d_normed, 0));
            }
        }
        d_normed
    }
}
