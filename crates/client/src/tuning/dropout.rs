//! Dropout on what is trained in front of the text (Srivastava et al. 2014), as torch's `Dropout` on a prompt encoder's output.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adapter::tables::{Parts, PromptTables, Table, TableGradients};

/// Random streams of a seed below this one are those of the tables' first values.
const FIRST_STREAM: u64 = 1 << 32;

/// Values of prompts and prefixes are left out of a step with probability `rate`, and what remains is larger by as much.
///
/// What is left out is a function of the seed and of the steps made before, so that a run that goes on does as one that never
/// ended, and all micro-batches of a step see the same tables.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptDropout {
    /// From 0 to below 1.
    pub rate: f64,
    /// Equal seeds leave out the same.
    pub seed: u64,
}

/// What tables are multiplied with in one step.
#[derive(Debug, Clone)]
pub(crate) struct Mask(Vec<(Table, Vec<f32>)>);

impl PromptDropout {
    /// The mask of the step behind `steps` others; `None` if nothing is in front of the text, or nothing to be left out.
    pub(crate) fn mask(&self, tables: &PromptTables, steps: u64) -> Option<Mask> {
        let keep = 1.0 - self.rate;
        if self.rate <= 0.0 || keep <= 0.0 {
            return None;
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(FIRST_STREAM.wrapping_add(steps));
        let factor = (1.0 / keep) as f32;
        let mut of_table = |table| {
            let values = tables.table(table)?.len();
            let draw = |_| if random.random::<f64>() < keep { factor } else { 0.0 };
            Some((table, (0..values).map(draw).collect()))
        };
        let masks: Vec<(Table, Vec<f32>)> = Table::IN_FRONT.into_iter().filter_map(&mut of_table).collect();
        (!masks.is_empty()).then_some(Mask(masks))
    }
}

impl Mask {
    /// The tables as the step sees them.
    pub(crate) fn of(&self, tables: &PromptTables) -> PromptTables {
        let mut seen = tables.clone();
        self.multiply(seen.parts_mut());
        seen
    }

    /// Turns gradients of the tables as seen into those of the tables.
    pub(crate) fn back(&self, gradients: &mut TableGradients) {
        self.multiply(gradients.parts_mut());
    }

    fn multiply(&self, parts: &mut Parts) {
        for (table, mask) in &self.0 {
            if let Some(values) = parts.get_mut(*table) {
                values.iter_mut().zip(mask).for_each(|(value, factor)| *value *= factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use petals_protocol::{BlockWidths, Injection, WeightChange};

    use super::*;
    use crate::adapter::tables::TableShape;

    fn tables(injection: Injection, prefix_len: usize) -> PromptTables {
        let weights = WeightChange::Scales { modules: petals_protocol::Modules::SCALED };
        let widths = BlockWidths::uniform(16);
        let shape = TableShape { injection, weights, scale: 1.0, blocks: 3, prefix_len, widths, labels: Some(2) };
        let mut tables = PromptTables::zeros(shape);
        tables.parts_mut().each_mut().for_each(|(_, values)| values.fill(1.0));
        tables
    }

    #[test]
    fn about_as_many_values_as_the_rate_says_are_left_out_and_the_rest_is_larger() {
        for injection in [Injection::Replace, Injection::Add, Injection::KeysValues] {
            let tables = tables(injection, 40);
            let seen = PromptDropout { rate: 0.25, seed: 3 }.mask(&tables, 7).unwrap().of(&tables);
            let front: Vec<f32> =
                Table::IN_FRONT.iter().filter_map(|table| seen.table(*table)).flatten().copied().collect();
            let zeros = front.iter().filter(|value| **value == 0.0).count() as f64 / front.len() as f64;
            assert!((zeros - 0.25).abs() < 0.05, "{injection:?}: {zeros}");
            let kept = (4.0f32 / 3.0).to_bits();
            assert!(front.iter().all(|value| *value == 0.0 || value.to_bits() == kept));
            assert!(seen.score().unwrap().iter().all(|value| *value == 1.0), "heads are left alone");
            assert_ne!(seen.version(), tables.version(), "servers must not take one for the other");
        }
    }

    #[test]
    fn a_mask_is_that_of_its_seed_and_step_alone() {
        let tables = tables(Injection::Add, 5);
        let seen = |seed, steps| PromptDropout { rate: 0.5, seed }.mask(&tables, steps).unwrap().of(&tables);
        assert_eq!(seen(1, 4), seen(1, 4));
        assert_ne!(seen(1, 4), seen(1, 5));
        assert_ne!(seen(1, 4), seen(2, 4));
    }

    #[test]
    fn gradients_of_what_was_left_out_are_nothing() {
        let tables = tables(Injection::Replace, 4);
        let mask = PromptDropout { rate: 0.5, seed: 0 }.mask(&tables, 0).unwrap();
        let mut gradients = TableGradients::zeros(*tables.shape());
        gradients.parts_mut().each_mut().for_each(|(_, values)| values.fill(1.0));
        mask.back(&mut gradients);
        // Of a sum over the tables as seen the gradient is the mask, which the tables of ones became.
        let seen = mask.of(&tables);
        assert!(tables.shape().tables().iter().all(|table| gradients.table(*table) == seen.table(*table)));
        let none = PromptDropout { rate: 0.0, seed: 0 };
        assert!(none.mask(&tables, 0).is_none());
    }
}
