//! What the loss of a step is, besides a plain cross-entropy. Measurements on held-out data are always plain.

use std::sync::Arc;

use petals_model::LossRules;

use super::batch::{Example, Target};

/// What is minimised: torch's `cross_entropy` with `label_smoothing`, and for classes with `weight`. The default is a plain one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingLoss {
    /// The part of a label's probability that all labels share, from 0 to 1.
    pub label_smoothing: f32,
    /// What each class counts, one positive number for each; `None` if all count 1. Next tokens always do.
    pub class_weights: Option<Arc<[f32]>>,
}

impl TrainingLoss {
    /// The rules for a head of classes, or of tokens.
    pub(crate) fn rules(&self, class: bool) -> LossRules<'_> {
        let weights = self.class_weights.as_deref().filter(|_| class).unwrap_or_default();
        LossRules { smoothing: self.label_smoothing, weights }
    }

    /// What the labels of a batch count together: what its summed loss is divided by, whatever its micro-batches.
    pub(crate) fn weight(&self, batch: &[Example]) -> f64 {
        batch.iter().map(|example| self.weight_of(example)).sum()
    }

    fn weight_of(&self, example: &Example) -> f64 {
        let own = match (&example.target, &self.class_weights) {
            (Target::Class(class), Some(weights)) => weights.get(*class).copied().unwrap_or(1.0),
            _ => 1.0,
        };
        f64::from(own) * example.labels() as f64
    }
}

/// Weights by which each class counts as much as any other: scikit-learn's `balanced`, `examples / (classes·count)`. A class without
/// examples, which no example's loss asks for, has 1.
pub fn balanced_weights(counts: &[usize]) -> Vec<f32> {
    let examples: usize = counts.iter().sum();
    let all = counts.len() as f64;
    let weight = |&count: &usize| if count == 0 { 1.0 } else { (examples as f64 / (all * count as f64)) as f32 };
    counts.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_weights_are_those_of_scikit_learn() {
        // compute_class_weight("balanced", classes=[0, 1, 2], y=[0]*6 + [1]*3 + [2]) of scikit-learn 1.9.
        let expected = [0.555_555_6, 1.111_111, 3.333_333_3];
        for (got, expected) in balanced_weights(&[6, 3, 1]).into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
        assert_eq!(balanced_weights(&[4, 0]), [0.5, 1.0]);
    }

    #[test]
    fn a_batch_counts_what_its_labels_count() {
        let class = |class| Example { tokens: vec![1, 2], target: Target::Class(class) };
        let tokens = Example { tokens: vec![1, 2, 3], target: Target::NextToken { from: 1 } };
        let empty = Example { tokens: Vec::new(), target: Target::Class(1) };
        let weighted = TrainingLoss { class_weights: Some([0.5, 3.0].into()), ..TrainingLoss::default() };
        assert_eq!(weighted.weight(&[class(0), class(1), class(1), empty]), 6.5);
        assert_eq!(weighted.weight(std::slice::from_ref(&tokens)), 2.0);
        assert_eq!(TrainingLoss::default().weight(&[class(0), class(1), tokens]), 4.0);
        assert!(weighted.rules(false).weights.is_empty(), "a vocabulary has other labels");
    }
}
