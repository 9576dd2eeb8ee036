//! Which rows of a block go on behind its keys and values.

use crate::engine::Engine;

/// The rows of a block that go on behind its keys and values: through queries, attention, MLP and residuals.
///
/// A replaced prefix is overwritten before the next block, and rows that nobody reads end with the last block: of those,
/// only keys and values are needed.
#[derive(Debug)]
pub(super) enum ActiveRows<E: Engine> {
    All,
    /// All but the first so many.
    Behind(usize),
    /// These, ascending.
    Picked(E::Picked),
}

impl<E: Engine> ActiveRows<E> {
    /// How many of `all` rows are active.
    pub(super) fn count(&self, engine: &E, all: usize) -> usize {
        match self {
            Self::All => all,
            Self::Behind(first) => all - first,
            Self::Picked(picked) => engine.count(picked),
        }
    }

    /// The active rows of a matrix over all rows.
    pub(super) fn gather(&self, engine: &E, all: &E::Rows) -> E::Rows {
        match self {
            Self::All => all.clone(),
            Self::Behind(first) => engine.slice(all, *first..engine.height(all)),
            Self::Picked(picked) => engine.gather(all, picked),
        }
    }

    /// Where the active rows of a matrix over all rows lie: from a row of it on, or in a copy.
    pub(super) fn locate(&self, engine: &E, all: &E::Rows) -> (Option<E::Rows>, usize) {
        match self {
            Self::All => (None, 0),
            Self::Behind(first) => (None, *first),
            Self::Picked(picked) => (Some(engine.gather(all, picked)), 0),
        }
    }

    /// Projects the active rows of a matrix over all rows.
    pub(super) fn project(&self, engine: &E, linear: &E::Linear, all: &E::Rows) -> E::Rows {
        match self {
            Self::All => engine.project(linear, all, 0),
            Self::Behind(first) => engine.project(linear, all, *first),
            Self::Picked(picked) => engine.project(linear, &engine.gather(all, picked), 0),
        }
    }

    /// Adds the input gradient of a projection of the active rows to one over all rows.
    pub(super) fn project_back(&self, engine: &E, linear: &E::Linear, dy: &E::Rows, all: E::Rows) -> E::Rows {
        match self {
            Self::All => engine.project_back_onto(linear, dy, all, 0),
            Self::Behind(first) => engine.project_back_onto(linear, dy, all, *first),
            Self::Picked(picked) => engine.add_picked(all, &engine.project_back(linear, dy), picked),
        }
    }

    /// Adds a matrix over the active rows to one over all rows.
    pub(super) fn add(&self, engine: &E, all: E::Rows, active: &E::Rows) -> E::Rows {
        match self {
            Self::All => engine.add(all, active, 0),
            Self::Behind(first) => engine.add(all, active, *first),
            Self::Picked(picked) => engine.add_picked(all, active, picked),
        }
    }
}
