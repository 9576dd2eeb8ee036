//! One optimiser step through the swarm, and the losses of evaluation.
//!
//! The join of local and remote autograd needs no graph: the remote output's gradient comes from the local head and loss,
//! the remote backward turns it into gradients of the prompts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use petals_model::{ClientModel, HeadError};

use crate::batch::{Example, MicroBatch, Target, micro_batches};
use crate::hop::TrafficCount;
use crate::optimizer::AdamW;
use crate::sequence::{PassGradients, PassInput, RemoteSequence, SequenceError};
use crate::tables::{GradientError, PromptTables, TableGradients};

/// How a batch is cut and how its gradients are used.
#[derive(Debug, Clone)]
pub struct TunerConfig {
    /// Tokens of a micro-batch. Default 1024.
    pub micro_batch_tokens: usize,
    /// Micro-batches under way at a time, so that every hop has work while others wait for theirs. Default 4.
    pub in_flight: usize,
    /// Largest global norm of the gradients; 0 is off, the default.
    pub clip: f64,
}

impl Default for TunerConfig {
    fn default() -> Self {
        Self { micro_batch_tokens: 1024, in_flight: 4, clip: 0.0 }
    }
}

/// Why a step or an evaluation failed. The tables are as before the step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// The pass through the swarm failed.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The local part failed: a token or label outside of the model, numbers that are not finite.
    #[error(transparent)]
    Model(#[from] HeadError),
    /// A gradient has the wrong size or is not finite.
    #[error(transparent)]
    Gradient(#[from] GradientError),
    /// The loss is NaN or infinite.
    #[error("the loss is not finite: try a lower learning rate")]
    LossNotFinite,
    /// The batch has no labels to learn from.
    #[error("the batch has no labels")]
    NoLabels,
    /// Classes are to be learnt, but there is no score head.
    #[error("the examples have classes, but the tables have no score head")]
    NoScoreHead,
    /// A local computation was stopped.
    #[error("a local computation failed")]
    Local(#[from] tokio::task::JoinError),
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean cross-entropy over all labels of the batch.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the blocks, prefixes not counted.
    pub tokens: usize,
    /// Time from start to updated tables.
    pub elapsed: Duration,
    /// What crossed the network meanwhile, and the blocks that were run for it.
    pub traffic: TrafficCount,
}

/// Losses summed over examples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Sum of cross-entropies.
    pub loss_sum: f64,
    /// Labels.
    pub labels: usize,
    /// Labels that were the most probable ones.
    pub correct: usize,
    /// Tokens that went through the blocks.
    pub tokens: usize,
}

impl Score {
    /// Mean cross-entropy; `None` without labels.
    pub fn loss(&self) -> Option<f64> {
        (self.labels > 0).then(|| self.loss_sum / self.labels as f64)
    }

    /// Share of labels predicted correctly; `None` without labels.
    pub fn accuracy(&self) -> Option<f64> {
        (self.labels > 0).then(|| self.correct as f64 / self.labels as f64)
    }

    fn add(&mut self, other: &Score) {
        self.loss_sum += other.loss_sum;
        self.labels += other.labels;
        self.correct += other.correct;
        self.tokens += other.tokens;
    }
}

/// Trains prompt tables through a [`RemoteSequence`].
#[derive(Debug)]
pub struct PromptTuner {
    sequence: Arc<RemoteSequence>,
    model: Arc<ClientModel>,
    tables: Arc<PromptTables>,
    optimizer: AdamW,
    config: TunerConfig,
}

/// Loss of one micro-batch with its gradients at the rows read and at the score head, both of the sum over labels.
struct LocalLoss {
    score: Score,
    hidden_grad: Vec<f32>,
    head_grad: Option<Vec<f32>>,
}

struct MicroGradients {
    score: Score,
    pass: PassGradients,
    head: Option<Vec<f32>>,
}

impl PromptTuner {
    /// A tuner of `tables`; `optimizer` must have been made for them.
    pub fn new(
        sequence: Arc<RemoteSequence>,
        model: Arc<ClientModel>,
        tables: PromptTables,
        optimizer: AdamW,
        config: TunerConfig,
    ) -> Self {
        Self { sequence, model, tables: Arc::new(tables), optimizer, config }
    }

    /// The tables as trained so far.
    pub fn tables(&self) -> &PromptTables {
        &self.tables
    }

    /// The optimiser's state.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// One step on `batch` with learning rate `lr`.
    ///
    /// The result does not depend on the micro-batches or on who computed them: gradients of the summed loss are added
    /// up in the batch's order and divided by its number of labels.
    ///
    /// # Errors
    /// [`TuneError`]; the tables and the optimiser are unchanged then.
    pub async fn step(&mut self, batch: &[Example], lr: f64) -> Result<StepReport, TuneError> {
        let (started, before) = (Instant::now(), self.sequence.traffic());
        let (mut gradients, score) = self.gradients(batch).await?;
        let loss = score.loss().filter(|loss| loss.is_finite()).ok_or(TuneError::LossNotFinite)?;
        gradients.check_finite()?;
        let grad_norm = gradients.clip_global_norm(self.config.clip);
        self.optimizer.step(Arc::make_mut(&mut self.tables), &gradients, lr);
        let traffic = self.sequence.traffic().since(&before);
        Ok(StepReport { loss, grad_norm, tokens: score.tokens, elapsed: started.elapsed(), traffic })
    }

    /// Gradients of the mean loss over `batch`, and that loss.
    ///
    /// # Errors
    /// [`TuneError`].
    pub async fn gradients(&self, batch: &[Example]) -> Result<(TableGradients, Score), TuneError> {
        let labels: usize = batch.iter().map(Example::labels).sum();
        if labels == 0 {
            return Err(TuneError::NoLabels);
        }
        let scale = 1.0 / labels as f32;
        let passes = micro_batches(batch, self.config.micro_batch_tokens)
            .into_iter()
            .map(|range| MicroBatch::new(&batch[range]))
            .filter(|micro| !micro.labels.is_empty())
            .map(|micro| self.micro_step(is_class(batch), micro, scale));
        let mut gradients = TableGradients::zeros(*self.tables.shape());
        let mut score = Score::default();
        let mut results = stream::iter(passes).buffered(self.config.in_flight.max(1));
        while let Some(micro) = results.try_next().await? {
            score.add(&micro.score);
            accumulate(&mut gradients, &micro)?;
        }
        Ok((gradients, score))
    }

    /// Losses and hits over `examples`, with the tables as they are.
    ///
    /// # Errors
    /// [`TuneError`].
    pub async fn evaluate(&self, examples: &[Example]) -> Result<Score, TuneError> {
        evaluate(&self.sequence, &self.model, Some(&self.tables), examples, &self.config).await
    }

    async fn micro_step(&self, class: bool, micro: MicroBatch, scale: f32) -> Result<MicroGradients, TuneError> {
        let (output, trace) = forward(&self.sequence, &self.model, Some(&self.tables), &micro, true).await?;
        let local = local_loss(&self.model, Some(&self.tables), class, micro, output, scale).await?;
        let pass = self.sequence.backward(trace, local.hidden_grad).await?;
        Ok(MicroGradients { score: local.score, pass, head: local.head_grad })
    }
}

/// Losses and hits over `examples` without training. `tables` may be missing for next-token targets.
///
/// # Errors
/// [`TuneError`].
pub async fn evaluate(
    sequence: &RemoteSequence,
    model: &Arc<ClientModel>,
    tables: Option<&Arc<PromptTables>>,
    examples: &[Example],
    config: &TunerConfig,
) -> Result<Score, TuneError> {
    let class = is_class(examples);
    let passes = micro_batches(examples, config.micro_batch_tokens)
        .into_iter()
        .map(|range| MicroBatch::new(&examples[range]))
        .filter(|micro| !micro.labels.is_empty())
        .map(|micro| async {
            let (output, _trace) = forward(sequence, model, tables, &micro, false).await?;
            local_loss(model, tables, class, micro, output, 1.0).await
        });
    let mut score = Score::default();
    let mut results = stream::iter(passes).buffered(config.in_flight.max(1));
    while let Some(local) = results.try_next().await? {
        score.add(&local.score);
    }
    Ok(score)
}

fn is_class(examples: &[Example]) -> bool {
    examples.iter().any(|example| matches!(example.target, Target::Class(_)))
}

async fn forward(
    sequence: &RemoteSequence,
    model: &Arc<ClientModel>,
    tables: Option<&Arc<PromptTables>>,
    micro: &MicroBatch,
    keep: bool,
) -> Result<(Vec<f32>, crate::sequence::Trace), TuneError> {
    let input = PassInput {
        lengths: micro.lengths.clone(),
        text: model.embed(&micro.tokens)?,
        read_rows: Some(micro.read_rows.clone()),
        prompts: tables.cloned(),
    };
    Ok(sequence.forward(input, keep).await?)
}

/// Head and loss on a thread of their own, while other micro-batches are on their way.
async fn local_loss(
    model: &Arc<ClientModel>,
    tables: Option<&Arc<PromptTables>>,
    class: bool,
    micro: MicroBatch,
    hidden: Vec<f32>,
    scale: f32,
) -> Result<LocalLoss, TuneError> {
    let (model, tables) = (model.clone(), tables.cloned());
    tokio::task::spawn_blocking(move || {
        let (labels, tokens) = (&micro.labels, micro.tokens.len());
        let mut local = if class {
            let head = tables.as_ref().and_then(|tables| tables.score()).ok_or(TuneError::NoScoreHead)?;
            let loss = model.class_loss(&hidden, head, labels)?;
            let score = Score { loss_sum: loss.loss_sum, correct: loss.correct, labels: labels.len(), tokens };
            LocalLoss { score, hidden_grad: loss.hidden_grad, head_grad: Some(loss.score_grad) }
        } else {
            let loss = model.lm_loss(&hidden, labels)?;
            let score = Score { loss_sum: loss.loss_sum, correct: loss.correct, labels: labels.len(), tokens };
            LocalLoss { score, hidden_grad: loss.grad, head_grad: None }
        };
        local.hidden_grad.iter_mut().chain(local.head_grad.iter_mut().flatten()).for_each(|g| *g *= scale);
        Ok(local)
    })
    .await?
}

fn accumulate(sum: &mut TableGradients, micro: &MicroGradients) -> Result<(), GradientError> {
    if let Some(prefix) = &micro.pass.prefix {
        sum.add_input(prefix)?;
    }
    for (span, prompts) in &micro.pass.prompts {
        sum.add_prompts(*span, prompts)?;
    }
    micro.head.as_ref().map_or(Ok(()), |head| sum.add_score(head))
}
