//! A mixture's experts that were chosen on the device, where nothing is kept for a backward.

use super::experts::Experts;
use crate::engine::{Chosen, Engine};

/// The insides of experts behind their activations.
#[derive(Debug)]
pub(super) struct ChosenInside<E: Engine> {
    chosen: E::Chosen,
    /// A row for each choice.
    activated: E::Rows,
    /// Of the expert that all rows go through, by its gates.
    shared: Option<E::Rows>,
}

impl<E: Engine> ChosenInside<E> {
    /// Of the normed rows `x`, whose router's scores are `scores`; `None` if the host has to choose.
    pub(super) fn new(engine: &E, experts: &Experts<E>, scores: &E::Rows, x: &E::Rows) -> Option<Self> {
        let first = experts.experts.first()?;
        let gate = experts.shared.as_ref().and_then(|shared| shared.gate.as_ref());
        if gate.is_some() && experts.design.bias {
            // Gates are multiplied with before the last projection, to which a bias is added.
            return None;
        }
        let gates = gate.map(|gate| engine.project(gate, x, 0));
        let chosen = engine.choose(&experts.design, [&first.inside, &first.down], scores, gates.as_ref())?;
        let activated = chosen.activated(engine, first.design, &first.inside, x);
        let shared = experts.shared.as_ref().map(|shared| chosen.gated(engine, shared.mlp.activated(engine, x)));
        Some(Self { chosen, activated, shared })
    }

    /// The experts' outputs by their weights, added to `sum` if there is one.
    pub(super) fn out(&self, engine: &E, experts: &Experts<E>, sum: Option<E::Rows>) -> E::Rows {
        let Self { chosen, activated, shared } = self;
        let sum = match experts.shared.as_ref().zip(shared.as_ref()) {
            Some((shared, activated)) => Some(shared.mlp.down(engine, activated, sum)),
            None => sum,
        };
        // There is one, or nothing could have been chosen.
        let first = &experts.experts[0];
        chosen.out(engine, &first.down, activated, sum)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.chosen.bytes() + E::bytes(&self.activated) + self.shared.as_ref().map_or(0, E::bytes)
    }
}

#[cfg(all(test, feature = "vulkan"))]
mod tests;
