//! AdamW (Loshchilov and Hutter 2019) with the arithmetic of `torch.optim.AdamW`.

use crate::adapter::tables::{Parts, PromptTables, TableGradients, TableShape};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f32 = 1e-8;

/// AdamW over all trained tables: betas 0.9 and 0.999, eps 1e-8, decoupled weight decay, state in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    weight_decay: f64,
    steps: u64,
    mean: Parts,
    square: Parts,
}

impl AdamW {
    /// A fresh optimiser for tables of this shape.
    pub fn new(shape: &TableShape, weight_decay: f64) -> Self {
        Self { weight_decay, steps: 0, mean: Parts::zeros(shape), square: Parts::zeros(shape) }
    }

    /// Restores a saved optimiser; the moments were checked against the tables' shape.
    pub(crate) fn from_saved(weight_decay: f64, steps: u64, mean: Parts, square: Parts) -> Self {
        Self { weight_decay, steps, mean, square }
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The decay factor; each step multiplies every table by `1 - lr * weight_decay`.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    pub(crate) fn moments(&self) -> (&Parts, &Parts) {
        (&self.mean, &self.square)
    }

    /// Updates every table once with learning rate `lr`.
    ///
    /// # Panics
    /// If the gradients, the tables and this optimiser were not made for one shape.
    pub fn step(&mut self, tables: &mut PromptTables, gradients: &TableGradients, lr: f64) {
        assert!(gradients.fit(tables), "gradients of other tables");
        self.steps += 1;
        let factors = Factors::at(self.steps, lr, self.weight_decay);
        let moments = self.mean.each_mut().zip(self.square.each_mut());
        let values = tables.parts_mut().each_mut().zip(gradients.parts().each());
        for (((_, values), (_, gradients)), ((_, mean), (_, square))) in values.zip(moments) {
            assert_eq!(values.len(), mean.len(), "an optimiser of other tables");
            for (((value, &gradient), mean), square) in values.iter_mut().zip(gradients).zip(mean).zip(square) {
                factors.update(value, gradient, mean, square);
            }
        }
    }
}

impl AdamW {
    /// Updates a parameter that is no table with the last step's count, decay and betas; `mean` and `square` are its moments.
    pub(crate) fn step_beside(
        &self,
        lr: f64,
        values: &mut [f32],
        gradients: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
    ) {
        let factors = Factors::at(self.steps, lr, self.weight_decay);
        for (((value, &gradient), mean), square) in values.iter_mut().zip(gradients).zip(mean).zip(square) {
            factors.update(value, gradient, mean, square);
        }
    }
}

/// The scalars of one step; computed in f64 and rounded once, as torch does.
struct Factors {
    keep: f32,
    mean_weight: f32,
    square_keep: f32,
    square_weight: f32,
    square_correction: f32,
    step_size: f32,
}

impl Factors {
    fn at(step: u64, lr: f64, weight_decay: f64) -> Self {
        let step = step as f64;
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            mean_weight: (1.0 - BETA1) as f32,
            square_keep: BETA2 as f32,
            square_weight: (1.0 - BETA2) as f32,
            square_correction: (1.0 - BETA2.powf(step)).sqrt() as f32,
            step_size: (lr / (1.0 - BETA1.powf(step))) as f32,
        }
    }

    fn update(&self, value: &mut f32, gradient: f32, mean: &mut f32, square: &mut f32) {
        *mean += self.mean_weight * (gradient - *mean);
        *square = *square * self.square_keep + self.square_weight * gradient * gradient;
        let scale = square.sqrt() / self.square_correction + EPS;
        *value = *value * self.keep - self.step_size * (*mean / scale);
    }
}

#[cfg(test)]
mod tests {
    use petals_protocol::{BlockWidths, Injection, WeightChange};

    use super::*;
    use crate::adapter::tables::Table;

    fn assert_close(got: &[f32], expected: &[f32]) {
        let close = got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1e-2));
        assert!(got.len() == expected.len() && close, "{got:?} is not {expected:?}");
    }

    /// One step: gradients before clipping, values after it; the input prompt first, then the score head.
    struct Recorded {
        lr: f64,
        gradients: [f32; 6],
        norm: f64,
        values: [f32; 6],
    }

    /// Three steps of `torch.optim.AdamW(lr, weight_decay=0.01)` after `clip_grad_norm_(1.0)`, printed by torch 2.8.
    #[test]
    fn three_clipped_steps_equal_those_of_torch() {
        let shape = TableShape {
            injection: Injection::None,
            weights: WeightChange::None,
            scale: 1.0,
            blocks: 1,
            prefix_len: 4,
            widths: BlockWidths::uniform(1),
            labels: Some(2),
        };
        let mut tables = PromptTables::zeros(shape);
        tables.parts_mut().get_mut(Table::Input).unwrap().copy_from_slice(&[1.0, -2.0, 0.5, 0.0]);
        tables.parts_mut().get_mut(Table::Score).unwrap().copy_from_slice(&[0.25, -0.75]);
        let mut optimizer = AdamW::new(&shape, 0.01);
        let recorded = [
            Recorded {
                lr: 0.1,
                gradients: [0.5, -1.0, 2.0, 0.0, 3.0, 1.0],
                norm: 3.905_124_9,
                values: [0.899_000_05, -1.898, 0.399_5, 0.0, 0.149_750_01, -0.849_25],
            },
            Recorded {
                lr: 0.05,
                gradients: [0.1, 0.2, -0.3, 0.4, 0.0, -0.5],
                norm: 0.741_619_88,
                values: [0.849_242_3, -1.893_561_1, 0.389_208_3, -0.037_206_847, 0.116_172_22, -0.830_971_6],
            },
            Recorded {
                lr: 0.025,
                gradients: [-5.0, 1e-3, 0.0, 0.25, 1.0, 2.0],
                norm: 5.482_928_3,
                values: [0.861_413_3, -1.891_748, 0.385_210_43, -0.053_295_065, 0.099_852_62, -0.833_678_5],
            },
        ];
        for step in recorded {
            let mut gradients = TableGradients::zeros(shape);
            gradients.add_input(&step.gradients[..4]).unwrap();
            gradients.add_score(&step.gradients[4..]).unwrap();
            assert!((gradients.clip_global_norm(1.0) - step.norm).abs() < 1e-6);
            optimizer.step(&mut tables, &gradients, step.lr);
            assert_close(&[tables.input(), tables.score().unwrap()].concat(), &step.values);
        }
        assert_eq!(optimizer.steps(), 3);
    }

    #[test]
    fn decay_alone_shrinks_a_table() {
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
        tables.parts_mut().get_mut(Table::Input).unwrap()[0] = 2.0;
        AdamW::new(&shape, 0.5).step(&mut tables, &TableGradients::zeros(shape), 0.1);
        assert_close(tables.input(), &[1.9]);
    }
}
