//! Which classes a classifier took for which.

use std::collections::BTreeMap;

/// How often each class was taken for each, as `sklearn.metrics.confusion_matrix` counts it. Pairs that never came take no room.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confusion {
    /// By true and predicted class.
    counts: BTreeMap<(usize, usize), u64>,
}

impl Confusion {
    /// Of examples with `labels`, whose logits `[labels, classes]` say what each is taken for: the class with the largest one, the first of
    /// equal ones, as `argmax` has it.
    pub(crate) fn of(labels: &[u32], logits: &[f32]) -> Self {
        let mut confusion = Self::default();
        let classes = (logits.len() / labels.len().max(1)).max(1);
        for (&label, logits) in labels.iter().zip(logits.chunks_exact(classes)) {
            let largest = logits.iter().copied().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
            confusion.add(label as usize, largest.map_or(0, |(class, _)| class), 1);
        }
        confusion
    }

    /// Counts `times` examples of class `class` that were taken for `predicted`.
    pub fn add(&mut self, class: usize, predicted: usize, times: u64) {
        *self.counts.entry((class, predicted)).or_default() += times;
    }

    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.counts.iter().for_each(|(&(class, predicted), &times)| self.add(class, predicted, times));
    }

    /// Class, what it was taken for, and how often, in ascending order; only what came.
    pub fn counts(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        self.counts.iter().map(|(&(class, predicted), &times)| (class, predicted, times))
    }

    /// Examples that were taken for what they are.
    pub fn correct(&self) -> u64 {
        self.counts().filter(|(class, predicted, _)| class == predicted).map(|(.., times)| times).sum()
    }

    /// The mean of the F1 of all `classes` classes, whatever their sizes, as `sklearn.metrics.f1_score` with `average="macro"` and all classes as
    /// `labels`: a class that neither came nor was predicted counts 0. `None` without examples.
    pub fn macro_f1(&self, classes: usize) -> Option<f64> {
        if self.counts.is_empty() || classes == 0 {
            return None;
        }
        let mut sides = vec![(0u64, 0u64); classes];
        for (class, predicted, times) in self.counts() {
            // Twice the hits over what is there and what was predicted is the harmonic mean of precision and recall.
            if let Some((hits, _)) = sides.get_mut(class).filter(|_| class == predicted) {
                *hits += 2 * times;
            }
            for side in [class, predicted] {
                if let Some((_, all)) = sides.get_mut(side) {
                    *all += times;
                }
            }
        }
        let f1 = sides.iter().map(|&(hits, all)| if all == 0 { 0.0 } else { hits as f64 / all as f64 });
        Some(f1.sum::<f64>() / classes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion(truth: &[usize], predicted: &[usize]) -> Confusion {
        let mut confusion = Confusion::default();
        truth.iter().zip(predicted).for_each(|(&truth, &predicted)| confusion.add(truth, predicted, 1));
        confusion
    }

    /// Made by scikit-learn 1.9.1: `f1_score(truth, predicted, labels=range(n), average="macro", zero_division=0)`, and
    /// `confusion_matrix(truth, predicted, labels=range(n))`.
    #[test]
    fn macro_f1_and_the_matrix_are_those_of_scikit_learn() {
        type Case = (&'static [usize], &'static [usize], f64, &'static [&'static [u64]]);
        let cases: [Case; 4] = [
            (&[2, 0, 2, 2, 0, 1], &[0, 0, 2, 2, 0, 2], 0.48888888888888893, &[&[2, 0, 0], &[0, 0, 1], &[1, 0, 2]]),
            (
                &[
                    3, 0, 0, 0, 0, 3, 3, 2, 0, 0, 1, 1, 2, 1, 1, 0, 2, 2, 0, 0, 1, 1, 3, 2, 1, 1, 2, 2, 0, 2, 3, 3, 3,
                    1, 1, 2, 2, 2, 3, 1,
                ],
                &[
                    3, 3, 0, 1, 0, 3, 1, 0, 0, 0, 2, 1, 3, 1, 1, 0, 2, 0, 2, 0, 1, 1, 3, 2, 1, 1, 3, 1, 0, 2, 3, 3, 3,
                    0, 1, 2, 2, 2, 0, 3,
                ],
                0.6730462519936203,
                &[&[7, 1, 1, 1], &[1, 8, 1, 1], &[2, 1, 6, 2], &[1, 1, 0, 6]],
            ),
            (&[1, 1, 2, 2, 2], &[1, 0, 2, 2, 1], 0.325, &[&[0, 0, 0, 0], &[1, 1, 0, 0], &[0, 1, 2, 0], &[0, 0, 0, 0]]),
            (&[1, 1, 1, 1, 1], &[0, 0, 0, 0, 0], 0.0, &[&[0, 0], &[5, 0]]),
        ];
        for (truth, predicted, f1, matrix) in cases {
            let (got, classes) = (confusion(truth, predicted), matrix.len());
            assert!((got.macro_f1(classes).unwrap() - f1).abs() < 1e-12, "{truth:?}");
            let cells = matrix
                .iter()
                .enumerate()
                .flat_map(|(class, row)| row.iter().enumerate().map(move |(p, &n)| (class, p, n)));
            assert_eq!(got.counts().collect::<Vec<_>>(), cells.filter(|(.., times)| *times > 0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn logits_are_read_as_argmax_reads_them() {
        let confusion = Confusion::of(&[0, 1, 1], &[0.5, 0.25, -1.0, -2.0, 3.0, 3.0]);
        assert_eq!(confusion.counts().collect::<Vec<_>>(), [(0, 0, 1), (1, 0, 2)]);
        assert_eq!(confusion.correct(), 1);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut sum = confusion(&[0, 1], &[0, 0]);
        sum.merge(&confusion(&[1, 1], &[0, 1]));
        assert_eq!(sum, confusion(&[0, 1, 1, 1], &[0, 0, 0, 1]));
        assert_eq!(Confusion::default().macro_f1(2), None);
    }
}
