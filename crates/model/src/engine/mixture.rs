//! Mixtures of experts whose rows choose where they are.

use std::convert::Infallible;
use std::fmt;

use super::Engine;
use crate::config::MlpDesign;

/// Which experts rows have chosen, and how much each of them counts, on a device that chooses itself.
pub(crate) trait Chosen<E: Engine>: fmt::Debug + Send + Sync + Sized {
    /// The insides of the chosen experts behind their activations, a row for each choice. `first` is the projection of the first expert.
    fn activated(&self, engine: &E, mlp: MlpDesign, first: &E::Linear, x: &E::Rows) -> E::Rows;

    /// What comes out of the chosen experts, by how much they count, added to `sum` if there is one. `first` is the projection of the first expert.
    fn out(&self, engine: &E, first: &E::Linear, activated: &E::Rows, sum: Option<E::Rows>) -> E::Rows;

    /// Rows multiplied by the sigmoids of their gates.
    fn gated(&self, engine: &E, x: E::Rows) -> E::Rows;

    /// Bytes that this occupies.
    fn bytes(&self) -> u64;
}

/// Of engines that leave it to the host.
impl<E: Engine> Chosen<E> for Infallible {
    fn activated(&self, _: &E, _: MlpDesign, _: &E::Linear, _: &E::Rows) -> E::Rows {
        match *self {}
    }

    fn out(&self, _: &E, _: &E::Linear, _: &E::Rows, _: Option<E::Rows>) -> E::Rows {
        match *self {}
    }

    fn gated(&self, _: &E, _: E::Rows) -> E::Rows {
        match *self {}
    }

    fn bytes(&self) -> u64 {
        match *self {}
    }
}
