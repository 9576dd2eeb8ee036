//! What a client computes itself: embeddings before the first block, final norm, head and loss behind the last.

use std::ops::Range;

use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, CheckpointError, Matrix, NormWeights};
use crate::config::{EmbeddingDesign, ModelConfig};
use crate::device::{Device, Dtype};
use crate::engine::host::matmul::FrozenMatrix;
use crate::engine::host::norm;
use crate::engine::host::simd::{tanh, vectorized};
use cross_entropy::cross_entropy;

pub use cross_entropy::LossRules;
pub use distillation::TopTokens;

mod cross_entropy;
mod distillation;

/// Bytes that the logits of one chunk of rows may take.
const LOGITS_BYTES: usize = 32 << 20;

/// Embeddings, final norm and language-model head, frozen, on the CPU; all in f32 but for the head's weights, which may be
/// kept in less.
///
/// Embeddings are read row by row from the mapped file and take no memory of their own. The head takes
/// `vocab_size · hidden_size` weights once, tied or not, and serves its forward and its backward as it is.
#[derive(Debug)]
pub struct ClientModel {
    config: ModelConfig,
    embeddings: Matrix,
    /// Of the embeddings, where the model norms them.
    embedding_norm: Option<NormWeights>,
    /// Behind the last block.
    norm: NormWeights,
    /// `[hidden, vocab]`
    head: FrozenMatrix,
}

/// A loss over language-model labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LossOutput {
    /// Sum of the cross-entropies over the rows, in nats, as the rules have them.
    pub loss_sum: f64,
    /// Rows whose label has the largest logit.
    pub correct: usize,
    /// Gradient of [`Self::loss_sum`] with respect to the hidden states, `[R, d]`.
    pub grad: Vec<f32>,
}

/// A loss over classes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassOutput {
    /// Sum of the cross-entropies over the rows, in nats, as the rules have them.
    pub loss_sum: f64,
    /// Rows whose label has the largest logit.
    pub correct: usize,
    /// `[B, labels]`.
    pub logits: Vec<f32>,
    /// Gradient of [`Self::loss_sum`] with respect to the hidden states, `[B, d]`.
    pub hidden_grad: Vec<f32>,
    /// Gradient of [`Self::loss_sum`] with respect to the score table, `[labels, d]`.
    pub score_grad: Vec<f32>,
}

/// Why embeddings or a loss could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// A token that the vocabulary does not have.
    #[error("token {id} is not below the vocabulary's size {vocab_size}")]
    Token {
        /// Which.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A class that the score table does not have.
    #[error("label {label} is not below the number of labels {labels}")]
    Label {
        /// Which.
        label: u32,
        /// Rows of the score table.
        labels: usize,
    },
    /// An input of another size than expected.
    #[error("{what} has {got} values, expected {expected}")]
    Size {
        /// Which input.
        what: &'static str,
        /// Values given.
        got: usize,
        /// Values expected.
        expected: usize,
    },
    /// The loss or a logit is NaN or infinite.
    #[error("{0} is not finite: the hidden states are extreme")]
    NotFinite(&'static str),
}

impl Checkpoint {
    /// Loads what a client computes itself: embeddings, final norm and head, on the CPU. The head's weights are kept in
    /// `dtype` ([`Dtype::Auto`] is f32).
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or of a dtype that is not read. [`CheckpointError::MissingHead`] if the head is neither there
    /// nor tied to the embeddings.
    pub fn load_client(&self, dtype: Dtype) -> Result<ClientModel, CheckpointError> {
        let config = self.config().clone();
        let (vocab, d, names, norm) = (config.vocab_size, config.hidden_size, config.names, config.block.norm);
        let (tied, head, embeddings) = (config.head.tied, names.head(), names.embeddings());
        if !tied && !self.has_matrix(head) {
            return Err(CheckpointError::MissingHead { path: self.tensors_path().to_owned() });
        }
        // Of a tied table either name may be the one that it is stored under.
        let table = if tied && !self.has_matrix(&embeddings) && self.has_matrix(head) { head } else { &embeddings };
        let embeddings = self.matrix(table, [vocab, d])?;
        let embedding_norm = config.embedding.norm.then(|| self.norm(&names.embedding_norm(), d, norm)).transpose()?;
        let norm = self.norm(&names.final_norm(), d, norm)?;
        let stored = if tied { embeddings.clone() } else { self.matrix(head, [vocab, d])? };
        let column = |token: usize, values: &mut [f32]| stored.decode_row(token, values);
        let head = FrozenMatrix::from_columns([d, vocab], dtype.on(&Device::cpu()), &column);
        // Embeddings are read from the file again, row by row.
        stored.release();
        Ok(ClientModel { config, embeddings, embedding_norm, norm, head })
    }
}

impl ClientModel {
    /// The model's architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of the weights in memory, the mapped embeddings not counted.
    pub fn weight_bytes(&self) -> u64 {
        self.head.bytes() + 4 * self.config.hidden_size as u64
    }

    /// What enters the first block for `ids`, `[ids.len(), d]`.
    ///
    /// # Errors
    /// [`HeadError::Token`] for the first id that the vocabulary does not have.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, HeadError> {
        Ok(self.enter(self.embeddings(ids)?))
    }

    /// The embeddings of `ids`, `[ids.len(), d]`, as the model's embedding module gives them: what trained prompts lie beside.
    ///
    /// # Errors
    /// [`HeadError::Token`] for the first id that the vocabulary does not have.
    pub fn embeddings(&self, ids: &[u32]) -> Result<Vec<f32>, HeadError> {
        let d = self.config.hidden_size;
        check_tokens(ids, self.config.vocab_size)?;
        let mut rows = vec![0.0; ids.len() * d];
        rows.chunks_exact_mut(d).zip(ids).for_each(|(row, &id)| self.embeddings.decode_row(id as usize, row));
        let EmbeddingDesign { scale, scales_table_only, .. } = self.config.embedding;
        if scales_table_only {
            rows.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(rows)
    }

    /// What enters the first block for rows that lie beside embeddings, such as prompts: Gemma multiplies all of them, and BLOOM norms them.
    pub fn enter(&self, mut rows: Vec<f32>) -> Vec<f32> {
        let scale = self.entry_scale();
        if scale != 1.0 {
            rows.iter_mut().for_each(|v| *v *= scale);
        }
        match &self.embedding_norm {
            Some(weights) => norm::forward(weights, &rows),
            None => rows,
        }
    }

    /// Whether what enters is not what lies beside embeddings.
    pub fn changes_entry(&self) -> bool {
        self.embedding_norm.is_some() || self.entry_scale() != 1.0
    }

    /// The gradient of the `rows` that [`Self::enter`] was given, from that of what it gave.
    pub fn enter_back(&self, rows: &[f32], mut grad: Vec<f32>) -> Vec<f32> {
        let scale = self.entry_scale();
        if let Some(weights) = &self.embedding_norm {
            let scaled: Vec<f32> = rows.iter().map(|v| v * scale).collect();
            norm::backward(weights, &scaled, &mut grad);
        }
        if scale != 1.0 {
            grad.iter_mut().for_each(|v| *v *= scale);
        }
        grad
    }

    fn entry_scale(&self) -> f32 {
        let EmbeddingDesign { scale, scales_table_only, .. } = self.config.embedding;
        if scales_table_only { 1.0 } else { scale }
    }

    /// The last block's output `hidden` `[R, d]` behind the final norm: what transformers calls the last hidden state.
    ///
    /// # Errors
    /// If `hidden` is not a whole number of rows, or a value is not finite.
    pub fn final_norm(&self, hidden: &[f32]) -> Result<Vec<f32>, HeadError> {
        self.count_rows(hidden)?;
        let normed = norm::forward(&self.norm, hidden);
        finite("a hidden state", &normed)?;
        Ok(normed)
    }

    /// Logits `[R, vocab_size]` of the last block's output `hidden` `[R, d]`.
    ///
    /// # Errors
    /// If `hidden` is not a whole number of rows, or a logit is not finite.
    pub fn lm_logits(&self, hidden: &[f32]) -> Result<Vec<f32>, HeadError> {
        self.count_rows(hidden)?;
        let mut logits = Vec::with_capacity(hidden.len() / self.config.hidden_size * self.config.vocab_size);
        for chunk in hidden.chunks(self.chunk_rows() * self.config.hidden_size) {
            logits.extend(self.logits(chunk));
        }
        finite("a logit", &logits)?;
        Ok(logits)
    }

    /// Cross-entropy of the last block's output `hidden` `[R, d]` against one label per row, and its gradient.
    ///
    /// The logits exist for a chunk of rows at a time, at most 32 MiB.
    ///
    /// # Errors
    /// If sizes do not match, a label is not in the vocabulary, or the loss is not finite.
    pub fn lm_loss(&self, hidden: &[f32], labels: &[u32], rules: LossRules<'_>) -> Result<LossOutput, HeadError> {
        expect_weights(rules, self.config.vocab_size)?;
        self.loss_of_rows(hidden, labels, |logits, rows| {
            cross_entropy(logits, &labels[rows], self.config.vocab_size, rules)
        })
    }

    /// A loss of the logits behind the rows of `hidden`, which `of_chunk` turns into its gradient and sums for some of the rows, with the
    /// number of those that are largest at their label.
    fn loss_of_rows(
        &self,
        hidden: &[f32],
        labels: &[u32],
        of_chunk: impl Fn(&mut [f32], Range<usize>) -> (f64, usize),
    ) -> Result<LossOutput, HeadError> {
        let d = self.config.hidden_size;
        expect_size("hidden", hidden.len(), labels.len() * d)?;
        check_tokens(labels, self.config.vocab_size)?;
        let mut total = LossOutput { loss_sum: 0.0, correct: 0, grad: Vec::with_capacity(hidden.len()) };
        let rows = self.chunk_rows();
        for (number, chunk) in hidden.chunks(rows * d).enumerate() {
            let mut logits = self.logits(chunk);
            let slopes = self.cap_slopes(&logits);
            let (loss, correct) = of_chunk(&mut logits, number * rows..number * rows + chunk.len() / d);
            logits.iter_mut().zip(&slopes).for_each(|(gradient, slope)| *gradient *= slope);
            self.scale_logits(&mut logits);
            total.loss_sum += loss;
            total.correct += correct;
            let mut grad = self.head.backward(&logits);
            norm::backward(&self.norm, chunk, &mut grad);
            total.grad.append(&mut grad);
        }
        if !total.loss_sum.is_finite() {
            return Err(HeadError::NotFinite("the loss"));
        }
        finite("the loss's gradient", &total.grad)?;
        Ok(total)
    }

    /// Cross-entropy of a classification head without bias: `hidden` `[B, d]` is the last block's output at the row
    /// that each example is read at, `score` is `[labels, d]`, `labels` has one class per example.
    ///
    /// # Errors
    /// If sizes do not match, a label has no row in `score`, or the loss is not finite.
    pub fn class_loss(
        &self,
        hidden: &[f32],
        score: &[f32],
        labels: &[u32],
        rules: LossRules<'_>,
    ) -> Result<ClassOutput, HeadError> {
        let d = self.config.hidden_size;
        let classes = score.len() / d;
        expect_size("score", score.len(), classes.max(1) * d)?;
        expect_size("hidden", hidden.len(), labels.len() * d)?;
        if let Some(&label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(HeadError::Label { label, labels: classes });
        }
        expect_weights(rules, classes)?;
        let normed = norm::forward(&self.norm, hidden);
        let logits = class_logits(&normed, score, d);
        let mut d_logits = logits.clone();
        let (loss_sum, correct) = cross_entropy(&mut d_logits, labels, classes, rules);
        let (mut hidden_grad, mut score_grad) = (vec![0.0; hidden.len()], vec![0.0; score.len()]);
        let examples = normed.chunks_exact(d).zip(hidden_grad.chunks_exact_mut(d)).zip(d_logits.chunks_exact(classes));
        for ((normed, hidden_grad), d_logits) in examples {
            let tables = score.chunks_exact(d).zip(score_grad.chunks_exact_mut(d));
            for ((score, score_grad), g) in tables.zip(d_logits) {
                hidden_grad.iter_mut().zip(score).for_each(|(sum, s)| *sum += g * s);
                score_grad.iter_mut().zip(normed).for_each(|(sum, n)| *sum += g * n);
            }
        }
        norm::backward(&self.norm, hidden, &mut hidden_grad);
        if !loss_sum.is_finite() {
            return Err(HeadError::NotFinite("the loss"));
        }
        Ok(ClassOutput { loss_sum, correct, logits, hidden_grad, score_grad })
    }

    fn count_rows(&self, hidden: &[f32]) -> Result<usize, HeadError> {
        let rows = hidden.len() / self.config.hidden_size;
        expect_size("hidden", hidden.len(), rows * self.config.hidden_size)?;
        Ok(rows)
    }

    fn chunk_rows(&self) -> usize {
        (LOGITS_BYTES / (4 * self.config.vocab_size)).max(1)
    }

    /// `[R, vocab_size]`
    fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let mut logits = self.head.forward(&norm::forward(&self.norm, hidden));
        self.scale_logits(&mut logits);
        if let Some(cap) = self.config.head.soft_cap {
            logits.par_chunks_mut(1 << 14).for_each(|logits| {
                vectorized(
                    #[inline(always)]
                    || logits.iter_mut().for_each(|v| *v = cap * tanh(*v / cap)),
                );
            });
        }
        logits
    }

    /// What logits, or their gradients, are multiplied by.
    fn scale_logits(&self, logits: &mut [f32]) {
        let scale = self.config.head.scale;
        if scale != 1.0 {
            logits.iter_mut().for_each(|v| *v *= scale);
        }
    }

    /// The slope of the soft cap at each capped logit `l`, `1 - (l/c)²`, if there is a cap.
    fn cap_slopes(&self, logits: &[f32]) -> Vec<f32> {
        let Some(cap) = self.config.head.soft_cap else { return Vec::new() };
        logits.iter().map(|logit| 1.0 - (logit / cap) * (logit / cap)).collect()
    }
}

/// `normed·scoreᵀ`, `[B, labels]`.
fn class_logits(normed: &[f32], score: &[f32], d: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    normed.chunks_exact(d).flat_map(|row| score.chunks_exact(d).map(move |class| dot(row, class))).collect()
}

fn check_tokens(ids: &[u32], vocab_size: usize) -> Result<(), HeadError> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(HeadError::Token { id, vocab_size }),
        None => Ok(()),
    }
}

fn expect_size(what: &'static str, got: usize, expected: usize) -> Result<(), HeadError> {
    if got == expected { Ok(()) } else { Err(HeadError::Size { what, got, expected }) }
}

/// A weight for each label, or none.
fn expect_weights(rules: LossRules<'_>, labels: usize) -> Result<(), HeadError> {
    if rules.weights.is_empty() { Ok(()) } else { expect_size("weights", rules.weights.len(), labels) }
}

fn finite(what: &'static str, values: &[f32]) -> Result<(), HeadError> {
    let finite = values.par_chunks(1 << 14).all(|chunk| chunk.iter().fold(true, |all, v| all & v.is_finite()));
    if finite { Ok(()) } else { Err(HeadError::NotFinite(what)) }
}

#[cfg(test)]
mod tests;
