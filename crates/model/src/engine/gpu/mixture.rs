//! Experts that rows choose on the device.

use cubecl::prelude::Runtime;
use petals_kernels as kernels;

use super::Gpu;
use super::linear::Linear;
use super::rows::{GpuRows, activation};
use crate::config::{ExpertWeights, ExpertsDesign, MlpDesign};

/// Rows of an expert, if all have as many, up to which its weights are read once for all of them.
const FEW: usize = 16;
/// Most choices: every cube looks through them.
const MOST_CHOICES: usize = 1024;

/// What rows have chosen.
#[derive(Debug)]
pub(crate) struct Chosen {
    of: kernels::Chosen,
    /// What rows of the shared expert are multiplied by.
    gates: Option<GpuRows>,
}

impl<R: Runtime> Gpu<R> {
    /// See [`crate::engine::Engine::choose`]. Many rows are multiplied expert by expert, which the host has to know.
    pub(super) fn chosen(
        &self,
        experts: &ExpertsDesign,
        first: [&Linear; 2],
        scores: &GpuRows,
        gates: Option<&GpuRows>,
    ) -> Option<Chosen> {
        let (rows, choices) = (scores.height, scores.height * experts.used);
        let few = rows < kernels::MANY_ROWS || choices <= (FEW * experts.count).min(MOST_CHOICES);
        let together = first.iter().all(|first| first.is_first_of(experts.count));
        if !few || !together || experts.count > kernels::MOST_EXPERTS {
            return None;
        }
        let of_all = experts.weights == ExpertWeights::OfAll;
        let choice = kernels::Choice { count: experts.count, used: experts.used, of_all };
        let of = kernels::choose(&self.gpu, choice, &scores.values, gates.map(|gates| &gates.values));
        Some(Chosen { of, gates: gates.cloned() })
    }

    /// The product with each expert that a row has chosen.
    fn product_of_chosen(
        &self,
        chosen: &kernels::Chosen,
        first: &Linear,
        x: (&GpuRows, bool),
        inside: kernels::Inside,
        width: usize,
    ) -> GpuRows {
        let y = self.empty(chosen.rows * chosen.used, width);
        let given = ((&x.0.values, x.1), (first.bias(), inside));
        kernels::product_of_chosen(&self.gpu, first.weight(), chosen, given.0, given.1, &y.values);
        y
    }
}

impl<R: Runtime> crate::engine::Chosen<Gpu<R>> for Chosen {
    fn activated(&self, engine: &Gpu<R>, mlp: MlpDesign, first: &Linear, x: &GpuRows) -> GpuRows {
        use crate::engine::Engine;
        let (given, width) = ((x, false), first.outputs());
        if mlp.gated {
            let inside = kernels::Inside::Gated(activation(mlp));
            return engine.product_of_chosen(&self.of, first, given, inside, width / 2);
        }
        let inside = engine.product_of_chosen(&self.of, first, given, kernels::Inside::Plain, width);
        engine.activate(mlp, &inside)
    }

    fn out(&self, engine: &Gpu<R>, first: &Linear, activated: &GpuRows, sum: Option<GpuRows>) -> GpuRows {
        let width = first.outputs();
        let y = engine.product_of_chosen(&self.of, first, (activated, true), kernels::Inside::Plain, width);
        let (sum, added) = match sum {
            Some(sum) => (engine.own(sum), true),
            None => (engine.empty(self.of.rows, width), false),
        };
        kernels::add_chosen(&engine.gpu, &self.of, &y.values, (&sum.values, width), added);
        sum
    }

    fn gated(&self, engine: &Gpu<R>, x: GpuRows) -> GpuRows {
        let Some(gates) = &self.gates else { return x };
        let x = engine.own(x);
        kernels::scale_rows(&engine.gpu, &x.values, &gates.values, x.width);
        x
    }

    fn bytes(&self) -> u64 {
        let of_choices = self.of.experts.len() + self.of.weights.len();
        (of_choices + self.gates.as_ref().map_or(0, GpuRows::len)) as u64 * size_of::<u32>() as u64
    }
}
