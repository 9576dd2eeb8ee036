//! Cross-entropy of a softmax, and its gradient.

use rayon::prelude::*;

use crate::engine::host::simd::{exp, max, sum2, vectorized};

/// The sum of `-ln softmax(row)[label]` over rows of `width`, and how many rows are largest at their label.
/// Replaces the logits by the gradient of the sum, `softmax(row) - onehot(label)`. Labels are below `width`.
pub(super) fn cross_entropy(logits: &mut [f32], labels: &[u32], width: usize) -> (f64, usize) {
    let row = |(row, &label): (&mut [f32], &u32)| vectorized(|| cross_entropy_of_row(row, label as usize));
    let rows: Vec<(f64, bool)> = logits.par_chunks_mut(width).zip(labels).map(row).collect();
    // Summed in order, so that the loss does not depend on the number of threads.
    (rows.iter().map(|(loss, _)| loss).sum(), rows.iter().filter(|(_, correct)| *correct).count())
}

#[inline(always)]
fn cross_entropy_of_row(row: &mut [f32], label: usize) -> (f64, bool) {
    let (largest, of_label) = (max(row), row[label]);
    row.iter_mut().for_each(|v| *v = exp(*v - largest));
    let sum = sum2(row, row, |v, _| v);
    let normaliser = sum.recip();
    row.iter_mut().for_each(|v| *v *= normaliser);
    row[label] -= 1.0;
    (f64::from(sum).ln() + f64::from(largest) - f64::from(of_label), of_label >= largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_agree_with_hand_computed_ones() {
        let mut logits = vec![1.0, 2.0, 0.0, -1.0];
        let (loss, correct) = cross_entropy(&mut logits, &[1, 1], 2);
        let exact = (1.0 + (-1.0f64).exp()).ln() + (1.0 + 1.0f64.exp()).ln();
        assert!((loss - exact).abs() < 1e-6 && correct == 1, "{loss} for {exact}");
        let p = 1.0 / (1.0 + 1.0f32.exp());
        for (got, expected) in logits.iter().zip([p, -p, 1.0 - p, p - 1.0]) {
            assert!((got - expected).abs() < 1e-6, "{logits:?}");
        }
    }
}
