//! An exponential moving average of the trained tables, as `torch.optim.swa_utils.get_ema_multi_avg_fn` has it (Polyak averaging with
//! a horizon). It begins at the first tables, so that there is no bias to be corrected.

use std::sync::Arc;

use crate::adapter::tables::{Parts, PromptTables};

/// The average, which is what is measured and saved as the adapter of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Average {
    decay: f64,
    tables: Arc<PromptTables>,
}

impl Average {
    /// An average that begins at `tables`. After each step it is `decay·average + (1 - decay)·tables`.
    pub fn new(decay: f64, tables: &PromptTables) -> Self {
        Self { decay, tables: Arc::new(tables.clone()) }
    }

    /// As saved.
    pub(crate) fn from_saved(decay: f64, tables: PromptTables) -> Self {
        Self { decay, tables: Arc::new(tables) }
    }

    /// How much of the average a step leaves.
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// The averaged tables.
    pub fn tables(&self) -> &Arc<PromptTables> {
        &self.tables
    }

    /// Takes in the tables after a step.
    pub(crate) fn update(&mut self, tables: &Parts) {
        let weight = (1.0 - self.decay) as f32;
        let averages = Arc::make_mut(&mut self.tables).parts_mut().each_mut();
        for ((_, averages), (_, values)) in averages.zip(tables.each()) {
            for (average, value) in averages.iter_mut().zip(values) {
                // As torch's `lerp`, which is exact at both of its ends.
                let difference = value - *average;
                *average =
                    if weight < 0.5 { *average + weight * difference } else { value - difference * (1.0 - weight) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use petals_protocol::{BlockWidths, Injection, WeightChange};

    use super::*;
    use crate::adapter::tables::{Table, TableShape};

    /// Values of one weight after each of five steps, and `AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(decay))` told of the first
    /// and then of each: printed by torch 2.8 (`tests/oracle/averages.py`).
    #[test]
    fn averages_equal_those_of_torch() {
        let values = [1.0f32, 0.5, -0.25, 2.0, 2.5, -1.0];
        for (decay, expected) in
            [(0.9, [1.0, 0.95, 0.83, 0.947, 1.102_3, 0.892_07]), (0.3, [1.0, 0.65, 0.02, 1.406, 2.171_8, -0.048_46])]
        {
            let shape = TableShape {
                injection: Injection::None,
                weights: WeightChange::None,
                scale: 1.0,
                blocks: 1,
                prefix_len: 1,
                widths: BlockWidths::uniform(1),
                labels: None,
            };
            let mut tables = PromptTables::zeros(shape);
            let mut set = |value| {
                tables.table_mut(Table::Input).unwrap()[0] = value;
                tables.clone()
            };
            let mut average = Average::new(decay, &set(values[0]));
            for (value, expected) in values[1..].iter().zip(&expected[1..]) {
                let before = average.tables().version();
                average.update(set(*value).parts());
                let got: f32 = average.tables().input()[0];
                assert!((got - expected).abs() < 1e-6, "{decay}: {got} for {expected}");
                assert_ne!(average.tables().version(), before);
            }
        }
    }
}
