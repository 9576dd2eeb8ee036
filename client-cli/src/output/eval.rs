//! A measurement on held-out data.

use std::fmt::{self, Display};

use petals_client::{Confusion, Label, LabelMap, Score};
use serde::Serialize;

use super::Event;

/// Most classes whose whole matrix people are shown; of more, the pairs that are mistaken most often.
const MATRIX_SHOWN: usize = 12;
/// Mistaken pairs that are shown then.
const PAIRS_SHOWN: usize = 10;
/// Characters of a label in the matrix.
const LABEL_SHOWN: usize = 16;
/// Most classes whose counts are a matrix in JSON; of more, only the pairs that came.
const MATRIX_WRITTEN: usize = 256;

/// A measurement on held-out data.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Eval {
    /// Steps that the tables were trained for.
    pub(crate) step: u64,
    /// Mean cross-entropy over all labels.
    pub(crate) loss: f64,
    /// Its exponential; causal-lm only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) perplexity: Option<f64>,
    /// Share of correct classes; seq-cls only, as what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy: Option<f64>,
    /// Mean F1 of all classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) macro_f1: Option<f64>,
    /// What was taken for what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) confusion: Option<ConfusionTable>,
}

/// Which classes were taken for which.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ConfusionTable {
    /// The classes, in the order of the label map.
    labels: Vec<Label>,
    /// By true class and by predicted class, how often.
    #[serde(skip_serializing_if = "Option::is_none")]
    matrix: Option<Vec<Vec<u64>>>,
    /// Where there are too many classes for that: true class, predicted class, how often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pairs: Option<Vec<(usize, usize, u64)>>,
    #[serde(skip)]
    counts: Confusion,
}

impl Eval {
    /// What `score` says after `step` steps; with the classes of a classifier. `None` if nothing was measured.
    pub(crate) fn new(step: u64, score: &Score, labels: Option<&LabelMap>) -> Option<Self> {
        let loss = score.loss()?;
        let perplexity = labels.is_none().then(|| loss.exp()).filter(|perplexity| perplexity.is_finite());
        Some(Self {
            step,
            loss,
            perplexity,
            accuracy: score.accuracy().filter(|_| labels.is_some()),
            macro_f1: labels.and_then(|labels| score.confusion.macro_f1(labels.len())),
            confusion: labels.map(|labels| ConfusionTable::new(labels, score.confusion.clone())),
        })
    }
}

impl ConfusionTable {
    fn new(labels: &LabelMap, counts: Confusion) -> Self {
        let classes = labels.len();
        let (matrix, pairs) = if classes <= MATRIX_WRITTEN {
            let mut matrix = vec![vec![0; classes]; classes];
            for (class, predicted, times) in counts.counts() {
                if let Some(cell) = matrix.get_mut(class).and_then(|row| row.get_mut(predicted)) {
                    *cell = times;
                }
            }
            (Some(matrix), None)
        } else {
            (None, Some(counts.counts().collect()))
        };
        Self { labels: labels.labels().to_vec(), matrix, pairs, counts }
    }

    fn name(&self, class: usize) -> String {
        let name = self.labels.get(class).map_or_else(|| class.to_string(), Label::to_string);
        match name.char_indices().nth(LABEL_SHOWN) {
            Some((at, _)) => format!("{}…", &name[..at]),
            None => name,
        }
    }
}

impl Event for Eval {
    const NAME: &'static str = "eval";
}

impl Display for Eval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after step {}: held-out loss {:.4}", self.step, self.loss)?;
        for (name, share) in [("accuracy", self.accuracy), ("macro-F1", self.macro_f1)] {
            if let Some(share) = share {
                write!(f, ", {name} {:.1} %", share * 100.0)?;
            }
        }
        if let Some(perplexity) = self.perplexity {
            write!(f, ", perplexity {perplexity:.2}")?;
        }
        self.confusion.as_ref().map_or(Ok(()), |confusion| confusion.fmt(f))
    }
}

impl Display for ConfusionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(matrix) = self.matrix.as_ref().filter(|matrix| matrix.len() <= MATRIX_SHOWN) else {
            let mut wrong: Vec<_> = self.counts.counts().filter(|(class, predicted, _)| class != predicted).collect();
            wrong.sort_by_key(|&(.., times)| std::cmp::Reverse(times));
            for (class, predicted, times) in wrong.into_iter().take(PAIRS_SHOWN) {
                write!(f, "\n  {} taken for {}: {times}", self.name(class), self.name(predicted))?;
            }
            return Ok(());
        };
        let names: Vec<String> = (0..matrix.len()).map(|class| self.name(class)).collect();
        let longest = matrix.iter().flatten().map(|times| times.to_string().len()).max().unwrap_or(0);
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let wide = width.max(longest);
        write!(f, "\n  classes by row, what they were taken for by column:\n  {:width$}", "")?;
        names.iter().try_for_each(|name| write!(f, "  {name:>wide$}"))?;
        for (name, row) in names.iter().zip(matrix) {
            write!(f, "\n  {name:>width$}")?;
            row.iter().try_for_each(|times| write!(f, "  {times:>wide$}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;

    fn score(correct: usize, labels: usize, counts: &[(usize, usize, u64)]) -> Score {
        let mut confusion = Confusion::default();
        counts.iter().for_each(|&(class, predicted, times)| confusion.add(class, predicted, times));
        Score { loss_sum: 0.5 * labels as f64, labels, correct, tokens: 9, confusion }
    }

    #[test]
    fn a_classifier_has_accuracy_macro_f1_and_a_matrix_with_the_names_of_its_classes() {
        let labels = LabelMap::from_labels(["no", "yes"].map(|label| Label::Text(label.into()))).unwrap();
        // sklearn.metrics.f1_score([0, 0, 0, 1], [0, 0, 1, 1], average="macro") is 0.7333333333333334.
        let eval = Eval::new(3, &score(3, 4, &[(0, 0, 2), (0, 1, 1), (1, 1, 1)]), Some(&labels)).unwrap();
        assert_eq!(
            Output::new(true).line(&eval).unwrap(),
            concat!(
                r#"{"event":"eval","step":3,"loss":0.5,"accuracy":0.75,"macro_f1":0.7333333333333334,"#,
                r#""confusion":{"labels":["no","yes"],"matrix":[[2,1],[0,1]]}}"#
            )
        );
        let said = "after step 3: held-out loss 0.5000, accuracy 75.0 %, macro-F1 73.3 %\n  classes by row, what they were taken \
                    for by column:\n          \"no\"  \"yes\"\n   \"no\"      2      1\n  \"yes\"      0      1";
        assert_eq!(Output::new(false).line(&eval).unwrap(), said);
    }

    #[test]
    fn next_tokens_have_a_perplexity() {
        let eval = Eval::new(3, &score(1, 4, &[]), None).unwrap();
        let json = r#"{"event":"eval","step":3,"loss":0.5,"perplexity":1.6487212707001282}"#;
        assert_eq!(Output::new(true).line(&eval).unwrap(), json);
        assert_eq!(eval.to_string(), "after step 3: held-out loss 0.5000, perplexity 1.65");
        assert!(Eval::new(3, &Score::default(), None).is_none());
    }

    #[test]
    fn of_many_classes_the_commonest_mistakes_are_shown_and_pairs_are_written() {
        let labels = LabelMap::numbered(300).unwrap();
        let eval = Eval::new(0, &score(1, 6, &[(0, 0, 1), (7, 8, 2), (299, 0, 3)]), Some(&labels)).unwrap();
        assert!(eval.to_string().ends_with("\n  299 taken for 0: 3\n  7 taken for 8: 2"), "{eval}");
        let json = serde_json::to_value(&eval).unwrap();
        assert_eq!(json["confusion"]["pairs"], serde_json::json!([[0, 0, 1], [7, 8, 2], [299, 0, 3]]));
        assert!(json["confusion"].get("matrix").is_none());
    }
}
