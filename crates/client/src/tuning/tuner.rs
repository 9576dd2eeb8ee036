//! One optimiser step through the swarm, and the losses of evaluation.
//!
//! The join of local and remote autograd needs no graph: the remote output's gradient comes from the local head and loss,
//! the remote backward turns it into gradients of the prompts.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use petals_model::{ClientModel, HeadError};
use petals_swarm::PeerId;

use super::aids::Aids;
use super::batch::{Example, MicroBatch, Target, micro_batches};
use super::confusion::Confusion;
use super::dropout::{Mask, PromptDropout};
use super::loss::TrainingLoss;
use super::optimizer::AdamW;
use super::pacer::{Pace, Pacer};
use crate::adapter::tables::{GradientError, PromptTables, TableGradients};
use crate::lock::lock;
use crate::sequence::{RemoteSequence, SequenceError};
use crate::servers::hop::TrafficCount;

mod estimate;
mod passes;
mod route;
mod teach;

pub use estimate::StepEstimate;
use passes::{MicroGradients, Passes, Task};
pub use route::HopPasses;
pub use teach::teach;

/// Results that wait for those in front of them, for each micro-batch under way: one that is repeated elsewhere must not
/// keep the others from going on.
const LOOKAHEAD: usize = 4;

/// How a batch is cut and how its gradients are used.
#[derive(Debug, Clone, Default)]
pub struct TunerConfig {
    /// Most tokens of a micro-batch. By default what earlier steps showed to be quickest.
    pub micro_batch_tokens: Option<usize>,
    /// Micro-batches under way at a time, so that every hop has work while others wait for theirs. By default what earlier
    /// steps showed to be enough.
    pub in_flight: Option<usize>,
    /// Largest global norm of the gradients; 0 is off, the default.
    pub clip: f64,
    /// What steps minimise. Evaluation is always by a plain cross-entropy.
    pub loss: TrainingLoss,
    /// What steps leave out of prompts and prefixes; evaluation leaves out nothing.
    pub dropout: Option<PromptDropout>,
}

impl TunerConfig {
    /// The pace that was asked for, as far as one was.
    fn pace(&self, measured: Pace) -> Pace {
        Pace {
            micro_batch_tokens: self.micro_batch_tokens.unwrap_or(measured.micro_batch_tokens),
            in_flight: self.in_flight.unwrap_or(measured.in_flight),
        }
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
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Mean loss over all labels of the batch: of what is minimised, with smoothing and weights where there are some.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the blocks, prefixes not counted.
    pub tokens: usize,
    /// Time from start to updated tables.
    pub elapsed: Duration,
    /// What crossed the network meanwhile, and the blocks that were run for it.
    pub traffic: TrafficCount,
    /// How the batch was cut.
    pub pace: Pace,
    /// Who ran it forward, in the order of the blocks.
    pub hops: Vec<HopPasses>,
}

/// Losses summed over examples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// Sum of cross-entropies.
    pub loss_sum: f64,
    /// Labels.
    pub labels: usize,
    /// Labels that were the most probable ones.
    pub correct: usize,
    /// Tokens that went through the blocks.
    pub tokens: usize,
    /// Which classes were taken for which; empty for next tokens.
    pub confusion: Confusion,
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
        self.confusion.merge(&other.confusion);
    }
}

/// Trains prompt tables through a [`RemoteSequence`].
#[derive(Debug)]
pub struct PromptTuner {
    sequence: Arc<RemoteSequence>,
    model: Arc<ClientModel>,
    tables: Arc<PromptTables>,
    optimizer: AdamW,
    aids: Aids,
    config: TunerConfig,
    pacer: Mutex<Pacer>,
    /// Who ran the last batch.
    hops: Mutex<Vec<HopPasses>>,
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
        Self {
            sequence,
            model,
            tables: Arc::new(tables),
            optimizer,
            aids: Aids::default(),
            config,
            pacer: Mutex::default(),
            hops: Mutex::default(),
        }
    }

    /// The same with what a run may have beside its tables, which must have been made for them.
    pub fn with_aids(self, aids: Aids) -> Self {
        Self { aids, ..self }
    }

    /// One that begins where this one is and goes its own way from there.
    pub fn fork(&self) -> Self {
        let (sequence, model, tables) = (self.sequence.clone(), self.model.clone(), self.tables.clone());
        let (optimizer, aids, config) = (self.optimizer.clone(), self.aids.clone(), self.config.clone());
        let pacer = Mutex::new(lock(&self.pacer).clone());
        Self { sequence, model, tables, optimizer, aids, config, pacer, hops: Mutex::default() }
    }

    /// The tables as trained so far.
    pub fn tables(&self) -> &PromptTables {
        &self.tables
    }

    /// The tables that the run is to be judged by, and that an adapter has: their average where there is one.
    pub fn judged(&self) -> &PromptTables {
        self.aids.judged(&self.tables)
    }

    /// What there is beside the tables.
    pub fn aids(&self) -> &Aids {
        &self.aids
    }

    /// The optimiser's state.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// One step on `batch` with learning rate `lr`.
    ///
    /// The result does not depend on the micro-batches or on who computed them: gradients of the summed loss are added
    /// up in the batch's order and divided by its number of labels, or by what these count together.
    ///
    /// # Errors
    /// [`TuneError`]; the tables and the optimiser are unchanged then.
    pub async fn step(&mut self, batch: &[Example], lr: f64) -> Result<StepReport, TuneError> {
        let (started, before) = (Instant::now(), self.sequence.traffic());
        let pace = self.pace(batch);
        let (gradients, score) = self.gradients_at(pace, batch).await?;
        let loss = score.loss().filter(|loss| loss.is_finite()).ok_or(TuneError::LossNotFinite)?;
        let trained = (Arc::make_mut(&mut self.tables), &mut self.optimizer);
        let grad_norm = self.aids.step(trained, gradients, (self.config.clip, lr))?;
        let traffic = self.sequence.traffic().since(&before);
        let (elapsed, hops) = (started.elapsed(), lock(&self.hops).clone());
        Ok(StepReport { loss, grad_norm, tokens: score.tokens, elapsed, traffic, pace, hops })
    }

    /// Gradients of the mean loss over `batch` by the tables, and that loss: as the next step would have them, dropout included.
    ///
    /// # Errors
    /// [`TuneError`].
    pub async fn gradients(&self, batch: &[Example]) -> Result<(TableGradients, Score), TuneError> {
        self.gradients_at(self.pace(batch), batch).await
    }

    async fn gradients_at(&self, pace: Pace, batch: &[Example]) -> Result<(TableGradients, Score), TuneError> {
        let labels: usize = batch.iter().map(Example::labels).sum();
        if labels == 0 {
            return Err(TuneError::NoLabels);
        }
        let dropout = self.config.dropout.as_ref();
        let mask = dropout.and_then(|dropout| dropout.mask(&self.tables, self.optimizer.steps()));
        let seen = mask.as_ref().map_or_else(|| self.tables.clone(), |mask| Arc::new(mask.of(&self.tables)));
        // Servers that are found to give wrong results may have done so in micro-batches that were not checked.
        loop {
            let started = Instant::now();
            let (mut gradients, score, peers) = self.gradients_once(pace, batch, &seen).await?;
            if !peers.iter().any(|peer| self.sequence.found_wrong_since(*peer, started)) {
                mask.iter().for_each(|mask: &Mask| mask.back(&mut gradients));
                return Ok((gradients, score));
            }
            tracing::info!("a server with wrong results had a part in this step, repeating it");
        }
    }

    /// As [`Self::gradients_at`], with the servers that had a part in it.
    async fn gradients_once(
        &self,
        pace: Pace,
        batch: &[Example],
        seen: &Arc<PromptTables>,
    ) -> Result<(TableGradients, Score, HashSet<PeerId>), TuneError> {
        let (started, mut peers) = (Instant::now(), HashSet::new());
        let weight = self.config.loss.weight(batch);
        let scale = (1.0 / weight) as f32;
        let passes = self.passes(batch, pace, seen).with_loss(self.config.loss.clone());
        let mut results = in_order(&passes, batch, pace, |passes, micro| passes.train(micro, scale));
        let mut gradients = TableGradients::zeros(*self.tables.shape());
        let (mut score, mut hops) = (Score::default(), Vec::new());
        while let Some(micro) = results.try_next().await? {
            score.add(&micro.score);
            accumulate(&mut gradients, &micro)?;
            peers.extend(&micro.peers);
            route::count(&mut hops, &micro.hops);
            lock(&self.pacer).record(&micro.measured);
        }
        gradients.leave(seen, &self.model);
        // So that the mean over labels is that by weight.
        score.loss_sum *= score.labels as f64 / weight;
        let routed = (tokens(batch) as f64 * self.sequence.largest_share()).ceil() as usize;
        lock(&self.pacer).record_batch(routed, pace, started.elapsed());
        *lock(&self.hops) = hops;
        Ok((gradients, score, peers))
    }

    fn pace(&self, examples: &[Example]) -> Pace {
        // The pacer sees one route; others have micro-batches of the same size under way beside it.
        let share = self.sequence.largest_share();
        let pace = lock(&self.pacer).pace((tokens(examples) as f64 * share).ceil() as usize);
        let in_flight = (pace.in_flight as f64 / share).ceil() as usize;
        self.config.pace(Pace { in_flight, ..pace })
    }

    fn passes(&self, examples: &[Example], pace: Pace, tables: &Arc<PromptTables>) -> Passes {
        let tables = Some(tables.clone());
        Passes::new(self.sequence.clone(), self.model.clone(), tables, is_class(examples), pace.in_flight)
    }

    /// Losses and hits over `examples`, with the tables that the run is to be judged by.
    ///
    /// # Errors
    /// [`TuneError`].
    pub async fn evaluate(&self, examples: &[Example]) -> Result<Score, TuneError> {
        let pace = self.pace(examples);
        score(&self.passes(examples, pace, self.aids.judged(&self.tables)), examples, pace).await
    }
}

/// Losses and hits over `examples` without training. `tables` may be missing for next-token targets.
///
/// # Errors
/// [`TuneError`].
pub async fn evaluate(
    sequence: &Arc<RemoteSequence>,
    model: &Arc<ClientModel>,
    tables: Option<&Arc<PromptTables>>,
    examples: &[Example],
    config: &TunerConfig,
) -> Result<Score, TuneError> {
    let pace = config.pace(Pacer::default().pace(tokens(examples)));
    let tables = tables.cloned();
    let passes = Passes::new(sequence.clone(), model.clone(), tables, is_class(examples), pace.in_flight);
    score(&passes, examples, pace).await
}

async fn score(passes: &Passes, examples: &[Example], pace: Pace) -> Result<Score, TuneError> {
    loop {
        let started = Instant::now();
        let (mut score, mut used) = (Score::default(), HashSet::new());
        let mut results = in_order(passes, examples, pace, Passes::evaluate);
        while let Some((micro, peers)) = results.try_next().await? {
            score.add(&micro);
            used.extend(peers);
        }
        if !used.iter().any(|peer| passes.sequence.found_wrong_since(*peer, started)) {
            return Ok(score);
        }
    }
}

/// Runs the micro-batches of `examples`, as many at a time as the pace says, and gives their results in the batch's order.
fn in_order<'a, T, F>(
    passes: &'a Passes,
    examples: &'a [Example],
    pace: Pace,
    run: impl Fn(Passes, MicroBatch) -> F + Copy + Send + 'a,
) -> BoxStream<'a, Result<T, TuneError>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, TuneError>> + Send + 'static,
{
    let ranges: Vec<Range<usize>> = micro_batches(examples, pace.micro_batch_tokens.max(1));
    let has_labels = |range: &Range<usize>| examples[range.clone()].iter().any(|example| example.labels() > 0);
    let ranges: Vec<Range<usize>> = ranges.into_iter().filter(has_labels).collect();
    let placed = stream::iter(ranges).then(move |range| async move { (passes.place().await, range) });
    let tasks = placed.map(move |(place, range)| {
        let task = Task::spawn(place, run(passes.clone(), MicroBatch::new(&examples[range])));
        async move { task.join().await? }
    });
    tasks.buffered(LOOKAHEAD * pace.in_flight.max(1)).boxed()
}

/// Tokens that go through the blocks.
fn tokens(examples: &[Example]) -> usize {
    examples.iter().map(Example::input_len).sum()
}

fn is_class(examples: &[Example]) -> bool {
    examples.iter().any(|example| matches!(example.target, Target::Class(_)))
}

fn accumulate(sum: &mut TableGradients, micro: &MicroGradients) -> Result<(), GradientError> {
    if let Some(prefix) = &micro.pass.prefix {
        sum.add_input(prefix)?;
    }
    for (span, tables) in &micro.pass.tables {
        sum.add_tables(*span, tables)?;
    }
    micro.head.as_ref().map_or(Ok(()), |head| sum.add_score(head))
}
