//! What is behind attention: an MLP, or a mixture of experts.

use super::chosen::ChosenInside;
use super::experts::{Experts, ExpertsStash};
use super::mlp::Mlp;
use crate::engine::Engine;
use crate::stack::tables::{Given, TableGrads, WeightTables};

/// A block's MLP, or its experts.
#[derive(Debug)]
pub(in crate::stack) enum Network<E: Engine> {
    Dense(Mlp<E>),
    Experts(Box<Experts<E>>),
}

/// What the backward needs of the inside.
#[derive(Debug)]
pub(super) enum InsideStash<E: Engine> {
    /// Gate beside up before the activation, `[A, 2·intermediate]`, or up alone.
    Dense(E::Rows),
    /// Behind the activation, `[A, intermediate]`, where nothing is kept for a backward.
    Activated(E::Rows),
    Experts(ExpertsStash<E>),
    /// Of experts that were chosen on the device, behind the activation, where nothing is kept for a backward.
    Chosen(ChosenInside<E>),
}

impl<E: Engine> InsideStash<E> {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Dense(inside) | Self::Activated(inside) => E::bytes(inside),
            Self::Experts(stash) => stash.bytes(),
            Self::Chosen(inside) => inside.bytes(),
        }
    }
}

impl<E: Engine> Network<E> {
    /// What the normed rows are before the activation, or behind it if that is all that is needed.
    pub(super) fn inside(&self, engine: &E, normed: &E::Rows, given: Given<'_, E>, keep: bool) -> InsideStash<E> {
        match self {
            Self::Dense(mlp) if !keep && given.adapted.is_empty() => {
                InsideStash::Activated(mlp.activated(engine, normed))
            }
            Self::Dense(mlp) => InsideStash::Dense(mlp.adapted_inside(engine, normed, given)),
            Self::Experts(experts) => {
                let scores = experts.scores(engine, normed);
                let chosen = if keep { None } else { ChosenInside::new(engine, experts, &scores, normed) };
                match chosen {
                    Some(chosen) => InsideStash::Chosen(chosen),
                    None => InsideStash::Experts(experts.inside(engine, normed, scores)),
                }
            }
        }
    }

    /// What comes out, added to `sum` if there is one.
    pub(super) fn out(
        &self,
        engine: &E,
        inside: &InsideStash<E>,
        sum: Option<E::Rows>,
        given: Given<'_, E>,
    ) -> E::Rows {
        match (self, inside) {
            (Self::Dense(mlp), InsideStash::Dense(inside)) => mlp.adapted_out(engine, inside, sum, given),
            (Self::Dense(mlp), InsideStash::Activated(activated)) => mlp.down(engine, activated, sum),
            (Self::Experts(experts), InsideStash::Experts(stash)) => experts.out(engine, stash, sum),
            (Self::Experts(experts), InsideStash::Chosen(inside)) => inside.out(engine, experts, sum),
            _ => unreachable!("a block's stash is of its own kind"),
        }
    }

    /// The gradient of the normed input, and those of the tables. `normed` makes that input again, if it is needed.
    pub(super) fn back(
        &self,
        engine: &E,
        inside: InsideStash<E>,
        dy: &E::Rows,
        normed: impl FnOnce() -> E::Rows,
        (tables, grads): (&WeightTables<E>, &mut TableGrads<E>),
    ) -> E::Rows {
        match (self, inside) {
            (Self::Dense(mlp), InsideStash::Dense(inside)) => {
                mlp.adapted_back(engine, inside, dy, normed, (tables, grads))
            }
            (Self::Experts(experts), InsideStash::Experts(stash)) => experts.back(engine, stash, dy),
            _ => unreachable!("a block's stash is of its own kind"),
        }
    }
}
