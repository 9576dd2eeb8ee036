//! Cross-entropy of a softmax, and its gradient.

use rayon::prelude::*;

use crate::engine::host::simd::{exp, max, sum2, vectorized};

/// What a loss is besides a plain cross-entropy, with the meaning that `label_smoothing` and `weight` have for torch's
/// `cross_entropy`. The default is a plain one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossRules<'a> {
    /// The part of a label's probability that all labels share, from 0 to 1.
    pub smoothing: f32,
    /// What each label counts, one for each; empty if all count 1.
    pub weights: &'a [f32],
}

impl LossRules<'_> {
    fn is_plain(&self) -> bool {
        self.smoothing == 0.0 && self.weights.is_empty()
    }
}

/// The sum over rows of `width` of `(1 - s)·w[label]·-ln p[label] + s / width·Σ w[k]·-ln p[k]` with `p = softmax(row)`, and how many
/// rows are largest at their label. Replaces the logits by the gradient of the sum. Labels are below `width`, and weights
/// are as many, or none.
pub(super) fn cross_entropy(logits: &mut [f32], labels: &[u32], width: usize, rules: LossRules<'_>) -> (f64, usize) {
    let total = if rules.weights.is_empty() { width as f32 } else { rules.weights.iter().sum() };
    let row = |(row, &label): (&mut [f32], &u32)| {
        let label = label as usize;
        vectorized(|| if rules.is_plain() { plain_row(row, label) } else { row_by_rules(row, label, rules, total) })
    };
    let rows: Vec<(f64, bool)> = logits.par_chunks_mut(width).zip(labels).map(row).collect();
    // Summed in order, so that the loss does not depend on the number of threads.
    (rows.iter().map(|(loss, _)| loss).sum(), rows.iter().filter(|(_, correct)| *correct).count())
}

#[inline(always)]
fn plain_row(row: &mut [f32], label: usize) -> (f64, bool) {
    let (of_label, softmax) = (row[label], softmax(row));
    row[label] -= 1.0;
    (softmax.normaliser - f64::from(of_label), of_label >= softmax.largest)
}

/// `total` is the sum of all weights.
#[inline(always)]
fn row_by_rules(row: &mut [f32], label: usize, rules: LossRules<'_>, total: f32) -> (f64, bool) {
    let LossRules { smoothing, weights } = rules;
    let of_label = row[label];
    let own = (1.0 - smoothing) * weights.get(label).copied().unwrap_or(1.0);
    let each = smoothing / row.len() as f32;
    let weighted: f64 = if smoothing == 0.0 {
        0.0
    } else if weights.is_empty() {
        row.iter().map(|&logit| f64::from(logit)).sum()
    } else {
        row.iter().zip(weights).map(|(&logit, &weight)| f64::from(logit) * f64::from(weight)).sum()
    };
    let softmax = softmax(row);
    let of_all = f64::from(total) * softmax.normaliser - weighted;
    let loss = f64::from(own) * (softmax.normaliser - f64::from(of_label)) + f64::from(each) * of_all;
    // As many of the probabilities as weights are given to labels, less what is given to each.
    let (mass, shared) = (own + each * total, each);
    if weights.is_empty() {
        row.iter_mut().for_each(|p| *p = *p * mass - shared);
    } else {
        row.iter_mut().zip(weights).for_each(|(p, weight)| *p = *p * mass - shared * weight);
    }
    row[label] -= own;
    (loss, of_label >= softmax.largest)
}

pub(super) struct Softmax {
    pub(super) largest: f32,
    /// `ln Σ exp(logit)`.
    pub(super) normaliser: f64,
}

/// Replaces logits by probabilities.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) -> Softmax {
    let largest = max(row);
    row.iter_mut().for_each(|v| *v = exp(*v - largest));
    let sum = sum2(row, row, |v, _| v);
    let factor = sum.recip();
    row.iter_mut().for_each(|v| *v *= factor);
    Softmax { largest, normaliser: f64::from(sum).ln() + f64::from(largest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_agree_with_hand_computed_ones() {
        let mut logits = vec![1.0, 2.0, 0.0, -1.0];
        let (loss, correct) = cross_entropy(&mut logits, &[1, 1], 2, LossRules::default());
        let exact = (1.0 + (-1.0f64).exp()).ln() + (1.0 + 1.0f64.exp()).ln();
        assert!((loss - exact).abs() < 1e-6 && correct == 1, "{loss} for {exact}");
        let p = 1.0 / (1.0 + 1.0f32.exp());
        for (got, expected) in logits.iter().zip([p, -p, 1.0 - p, p - 1.0]) {
            assert!((got - expected).abs() < 1e-6, "{logits:?}");
        }
    }

    /// Rows of four logits and their labels, and what torch 2.8 makes of them.
    const LOGITS: [f32; 12] = [0.5, -1.0, 2.0, 0.25, 1.5, 0.0, -2.0, 3.0, -0.5, 0.75, 0.1, 1.0];
    const LABELS: [u32; 3] = [2, 0, 3];
    const WEIGHTS: [f32; 4] = [0.5, 2.0, 1.0, 0.25];

    /// Smoothing, weights, `cross_entropy(…, reduction="sum")` and its gradient by the logits, printed by torch (see
    /// `tests/oracle/losses.py`).
    #[test]
    fn smoothed_and_weighted_losses_equal_those_of_torch() {
        let recorded: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/goldens/data/losses.json")).unwrap();
        let cases = recorded["cases"].as_array().unwrap();
        assert!(cases.len() >= 6);
        for case in cases {
            let smoothing = case["smoothing"].as_f64().unwrap() as f32;
            let weights: &[f32] = if case["weighted"].as_bool().unwrap() { &WEIGHTS } else { &[] };
            let mut logits = LOGITS;
            let (loss, correct) = cross_entropy(&mut logits, &LABELS, 4, LossRules { smoothing, weights });
            let expected = case["loss"].as_f64().unwrap();
            assert!((loss - expected).abs() < 1e-6 * expected.abs() && correct == 2, "{case}: {loss}, {correct}");
            for (got, expected) in logits.iter().zip(case["gradient"].as_array().unwrap()) {
                assert!((f64::from(*got) - expected.as_f64().unwrap()).abs() < 1e-6, "{case}: {logits:?}");
            }
        }
    }
}
