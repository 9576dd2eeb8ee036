//! Learning from another model's distributions: its most probable tokens, and how far one is from them.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;

use super::cross_entropy::softmax;
use super::{ClientModel, HeadError, LossOutput, check_tokens, expect_size, finite};
use crate::engine::host::simd::vectorized;

/// Probability that counts as none: what is left of a distribution is no smaller than what f32 sums leave.
const NOTHING: f64 = 1e-7;

/// The most probable tokens of several rows, `k` of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopTokens {
    /// How many of each row.
    pub k: usize,
    /// The tokens, `[rows, k]`, each row's most probable first.
    pub tokens: Vec<u32>,
    /// Their probabilities, `[rows, k]`.
    pub probabilities: Vec<f32>,
}

impl TopTokens {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len().checked_div(self.k).unwrap_or(0)
    }

    /// Some of the rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let range = rows.start * self.k..rows.end * self.k;
        let (tokens, probabilities) = (self.tokens.get(range.clone()), self.probabilities.get(range));
        let (tokens, probabilities) = (tokens.unwrap_or_default(), probabilities.unwrap_or_default());
        Self { k: self.k, tokens: tokens.to_vec(), probabilities: probabilities.to_vec() }
    }

    /// Puts the rows of `others`, of as many tokens each, behind these.
    pub fn append(&mut self, others: &Self) {
        self.k = others.k;
        self.tokens.extend_from_slice(&others.tokens);
        self.probabilities.extend_from_slice(&others.probabilities);
    }
}

impl ClientModel {
    /// The `k` most probable next tokens behind each row of the last block's output `hidden` `[R, d]`; fewer if the vocabulary is smaller.
    ///
    /// # Errors
    /// If `hidden` is not a whole number of rows, or a logit is not finite.
    pub fn top_tokens(&self, hidden: &[f32], k: usize) -> Result<TopTokens, HeadError> {
        self.count_rows(hidden)?;
        let vocab = self.config.vocab_size;
        let mut top = TopTokens { k: k.min(vocab), ..TopTokens::default() };
        for chunk in hidden.chunks(self.chunk_rows() * self.config.hidden_size) {
            let mut logits = self.logits(chunk);
            finite("a logit", &logits)?;
            let of_row = |row: &mut [f32]| largest(row, top.k);
            let rows: Vec<Vec<(u32, f32)>> = logits.par_chunks_mut(vocab).map(of_row).collect();
            for (token, probability) in rows.into_iter().flatten() {
                top.tokens.push(token);
                top.probabilities.push(probability);
            }
        }
        Ok(top)
    }

    /// How far the next tokens behind the rows of `hidden` `[R, d]` are from those `taught`, and the gradient: the sum over rows of the
    /// Kullback-Leibler divergence from the taught distribution to this one, in nats, with all tokens that are not named taken as one.
    /// `labels` are the tokens that do follow, for the number of hits.
    ///
    /// # Errors
    /// If sizes do not match, a token is not in the vocabulary, or the loss is not finite.
    pub fn distillation_loss(
        &self,
        hidden: &[f32],
        labels: &[u32],
        taught: &TopTokens,
    ) -> Result<LossOutput, HeadError> {
        let vocab = self.config.vocab_size;
        expect_size("taught probabilities", taught.probabilities.len(), labels.len() * taught.k)?;
        expect_size("taught tokens", taught.tokens.len(), labels.len() * taught.k)?;
        check_tokens(&taught.tokens, vocab)?;
        self.loss_of_rows(hidden, labels, |logits, rows| {
            let part = taught.part(rows.clone());
            let named = part.tokens.chunks(part.k.max(1)).zip(part.probabilities.chunks(part.k.max(1)));
            let rows: Vec<_> = logits.chunks_mut(vocab).zip(named).zip(&labels[rows]).collect();
            let rows = rows.into_par_iter().map(|((row, (tokens, taught)), &label)| {
                vectorized(|| divergence(row, tokens, taught, label as usize))
            });
            let rows: Vec<(f64, bool)> = rows.collect();
            (rows.iter().map(|(loss, _)| loss).sum(), rows.iter().filter(|(_, correct)| *correct).count())
        })
    }
}

/// The largest probabilities of a row of logits, which becomes probabilities. Of equal ones the first.
fn largest(row: &mut [f32], k: usize) -> Vec<(u32, f32)> {
    softmax(row);
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    let by_size = |a: &u32, b: &u32| {
        let sizes = row[*b as usize].partial_cmp(&row[*a as usize]).unwrap_or(Ordering::Equal);
        sizes.then(a.cmp(b))
    };
    if k < order.len() {
        order.select_nth_unstable_by(k, by_size);
        order.truncate(k);
    }
    order.sort_unstable_by(by_size);
    order.into_iter().map(|token| (token, row[token as usize])).collect()
}

/// The divergence of a row of logits, which becomes its gradient, and whether it is largest at its label.
///
/// With `q = softmax(row)`, named tokens `i` of probability `p[i]`, and `P`, `Q` the sums over these, it is
/// `Σ p[i] ln(p[i]/q[i]) + (1-P) ln((1-P)/(1-Q))`, with the gradient `q[i] - p[i]` at named tokens and `q[j]·(1 - (1-P)/(1-Q))` at others.
#[inline(always)]
fn divergence(row: &mut [f32], tokens: &[u32], taught: &[f32], label: usize) -> (f64, bool) {
    let of_label = row[label];
    let logits: Vec<f32> = tokens.iter().map(|&token| row[token as usize]).collect();
    let made = softmax(row);
    let (mut loss, mut of_taught, mut of_made) = (0.0, 0.0, 0.0);
    for ((&token, &p), logit) in tokens.iter().zip(taught).zip(logits) {
        let p = f64::from(p);
        of_taught += p;
        of_made += f64::from(row[token as usize]);
        if p > 0.0 {
            loss += p * (p.ln() - f64::from(logit) + made.normaliser);
        }
    }
    let (left, left_made) = ((1.0 - of_taught).max(0.0), (1.0 - of_made).max(NOTHING));
    let mut factor = 1.0;
    if left > NOTHING {
        loss += left * (left / left_made).ln();
        factor -= (left / left_made) as f32;
    }
    let named: Vec<f32> = tokens.iter().zip(taught).map(|(&token, p)| row[token as usize] - p).collect();
    row.iter_mut().for_each(|q| *q *= factor);
    tokens.iter().zip(named).for_each(|(&token, gradient)| row[token as usize] = gradient);
    (loss, of_label >= made.largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_tokens_come_first_and_the_first_of_equal_ones() {
        let mut row = [1.0, 3.0, 2.0, 3.0, -1.0];
        let tokens: Vec<u32> = largest(&mut row, 3).into_iter().map(|(token, _)| token).collect();
        assert_eq!(tokens, [1, 3, 2]);
        let all: f32 = largest(&mut [0.0; 4], 4).into_iter().map(|(_, p)| p).sum();
        assert!((all - 1.0).abs() < 1e-6);
    }

    /// `torch.nn.functional.kl_div(log_softmax([q0, q3, q1 + q2]), [0.5, 0.3, 0.2], reduction="sum")` for the logits below.
    #[test]
    fn the_divergence_is_that_of_torch_and_its_gradient_its_derivative() {
        let logits = [0.5, -1.0, 2.0, 0.25];
        let (tokens, taught) = ([0u32, 3], [0.5f32, 0.3]);
        let at = |logits: [f32; 4]| {
            let mut row = logits;
            (divergence(&mut row, &tokens, &taught, 2), row)
        };
        let ((loss, correct), gradient) = at(logits);
        assert!((loss - 0.604_909).abs() < 1e-5 && correct, "{loss}");
        for (place, gradient) in gradient.into_iter().enumerate() {
            let moved = |by: f32| {
                let mut moved = logits;
                moved[place] += by;
                at(moved).0.0
            };
            let measured = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((f64::from(gradient) - measured).abs() < 1e-4, "{place}: {gradient} for {measured}");
        }
    }

    #[test]
    fn a_distribution_is_no_way_from_itself() {
        let mut row = [0.5f32, -1.0, 2.0, 0.25];
        let top = largest(&mut row.clone(), 2);
        let (tokens, taught): (Vec<u32>, Vec<f32>) = top.into_iter().unzip();
        let (loss, _) = divergence(&mut row, &tokens, &taught, 0);
        assert!(loss.abs() < 1e-6 && row.iter().all(|gradient| gradient.abs() < 1e-6), "{loss}, {row:?}");
    }
}
