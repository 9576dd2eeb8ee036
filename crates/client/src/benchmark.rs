//! Work to be timed: what `petals-tune bench` repeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use petals_model::{ClientModel, HeadError};
use petals_swarm::PeerId;

use crate::adapter::method::Method;
use crate::adapter::names::Task;
use crate::adapter::tables::{InitError, InitRule, PromptTables, TableInit};
use crate::connect::ModelFiles;
use crate::inference::logits::{LogitsError, RemoteModel};
use crate::inference::sampler::Sampler;
use crate::inference::text_session::TextSession;
use crate::sequence::{HopTiming, PassInput, Purpose, RelayMode, RemoteSequence, SequenceError};
use crate::servers::hop::{ServerWork, TrafficCount};
use crate::tuning::batch::{Example, MicroBatch, Target, micro_batches};
use crate::tuning::optimizer::AdamW;
use crate::tuning::tuner::{PromptTuner, TuneError, TunerConfig};

/// Tokens that a user generates, and of the text before.
const DECODED: usize = 32;
const DECODE_BEHIND: usize = 8;
/// Classes of the score head in classification.
const LABELS: usize = 2;
/// A step's size does not matter for its time; the tables must only stay finite.
const LEARNING_RATE: f64 = 1e-3;
/// How a batch is cut in forward where nothing else was asked for; training measures what is quickest.
const FORWARD_TOKENS: usize = 1024;
const FORWARD_IN_FLIGHT: usize = 4;

/// The batch that is timed, and how it is trained on.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Examples.
    pub batch: usize,
    /// Tokens of each example, at least 2.
    pub length: usize,
    /// What is trained.
    pub method: Method,
    /// What is learnt in training.
    pub task: Task,
    /// How batches are cut, in training and in forward.
    pub passes: TunerConfig,
}

/// Why a repetition failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchmarkError {
    /// The pass through the swarm failed.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// A training step failed.
    #[error(transparent)]
    Train(#[from] TuneError),
    /// A step of a session failed.
    #[error(transparent)]
    Logits(#[from] LogitsError),
    /// Embeddings could not be read.
    #[error(transparent)]
    Model(#[from] HeadError),
    /// The tables could not be made.
    #[error(transparent)]
    Tables(#[from] InitError<HeadError>),
}

/// What one repetition took.
#[derive(Debug, Clone, Default)]
pub struct Repetition {
    /// From start to result.
    pub elapsed: Duration,
    /// Tokens of text in the batch.
    pub tokens: usize,
    /// Frames that crossed the client's streams.
    pub traffic: TrafficCount,
    /// What each server did meanwhile.
    pub servers: BTreeMap<PeerId, ServerWork>,
    /// Of the hops of a single forward, in their order.
    pub hops: Vec<HopTiming>,
}

/// Repeats work on a swarm. The data are made up, and the same each time.
#[derive(Debug)]
pub struct Benchmark {
    sequence: Arc<RemoteSequence>,
    local: Arc<ClientModel>,
    workload: Workload,
    hidden: usize,
    tuner: Option<PromptTuner>,
}

impl Benchmark {
    /// A benchmark of `sequence`, which must run the model of `files`.
    pub fn new(files: &ModelFiles, sequence: Arc<RemoteSequence>, workload: Workload) -> Self {
        let hidden = files.config.hidden_size;
        Self { sequence, local: files.local.clone(), workload, hidden, tuner: None }
    }

    /// All hidden states of the batch through all blocks and back.
    ///
    /// # Errors
    /// [`BenchmarkError`].
    pub async fn forward(&self) -> Result<Repetition, BenchmarkError> {
        let Workload { batch, length, passes, .. } = &self.workload;
        let examples = self.examples(Task::SeqCls);
        let meter = Meter::start(&self.sequence);
        let micros = micro_batches(&examples, passes.micro_batch_tokens.unwrap_or(FORWARD_TOKENS)).into_iter();
        let passes_of_batch = micros.map(|range| async {
            let MicroBatch { lengths, tokens, .. } = MicroBatch::new(&examples[range]);
            let input = PassInput { lengths, text: self.local.embed(&tokens)?, read_rows: None, tables: None };
            self.sequence.forward(input, false).await?;
            Ok::<_, BenchmarkError>(())
        });
        stream::iter(passes_of_batch)
            .buffered(passes.in_flight.unwrap_or(FORWARD_IN_FLIGHT).max(1))
            .try_collect::<Vec<()>>()
            .await?;
        Ok(meter.stop(batch * length))
    }

    /// One optimiser step on the batch. The first one also makes the tables.
    ///
    /// # Errors
    /// [`BenchmarkError`].
    pub async fn train(&mut self) -> Result<Repetition, BenchmarkError> {
        let Workload { batch, length, task, .. } = self.workload;
        let examples = self.examples(task);
        if self.tuner.is_none() {
            self.tuner = Some(self.new_tuner()?);
        }
        let Some(tuner) = &mut self.tuner else { return Ok(Repetition::default()) };
        let meter = Meter::start(&self.sequence);
        tuner.step(&examples, LEARNING_RATE).await?;
        Ok(meter.stop(batch * length))
    }

    /// Greedy generation of 32 tokens by each of `batch` users at a time, who have a session each. What comes before is not timed.
    ///
    /// # Errors
    /// [`BenchmarkError`].
    pub async fn decode(&self) -> Result<Repetition, BenchmarkError> {
        let batch = self.workload.batch;
        let model = &RemoteModel::new(self.sequence.clone(), self.local.clone());
        let users = (0..batch).map(|row| async move {
            let mut session = TextSession::new(model.clone(), 1, DECODE_BEHIND + DECODED);
            let text: Vec<u32> = (0..DECODE_BEHIND).map(|at| self.token(row, at)).collect();
            let logits = session.append(&[text]).await?;
            Ok::<_, BenchmarkError>((session, logits))
        });
        let users = try_join_all(users).await?;
        let meter = Meter::start(&self.sequence);
        let generate = users.into_iter().map(|(mut session, mut logits)| async move {
            let mut sampler = Sampler::greedy();
            for _ in 0..DECODED {
                logits = session.append(&[sampler.choose(&logits, &[]).into_iter().collect()]).await?;
            }
            // Dropping a session ends it on the servers, which is not part of a token.
            Ok::<_, BenchmarkError>(session)
        });
        let _sessions = try_join_all(generate).await?;
        Ok(meter.stop(batch * DECODED))
    }

    /// One pass of `rows` examples of one row, with each hop's time in [`Repetition::hops`].
    ///
    /// # Errors
    /// [`BenchmarkError`].
    pub async fn hop(&self, rows: usize) -> Result<Repetition, BenchmarkError> {
        let input =
            PassInput { lengths: vec![1; rows], text: vec![0.01; rows * self.hidden], read_rows: None, tables: None };
        let meter = Meter::start(&self.sequence);
        // In a chain a hop's own share of the time does not show.
        let (_, trace) = self.sequence.forward_over(RelayMode::Star, Purpose::Soonest, input, false).await?;
        let mut repetition = meter.stop(rows);
        repetition.hops = trace.timings().collect();
        Ok(repetition)
    }

    fn new_tuner(&self) -> Result<PromptTuner, BenchmarkError> {
        let Workload { method, task, passes, .. } = &self.workload;
        let shape = method.shape(self.local.config(), (*task == Task::SeqCls).then_some(LABELS));
        let config = self.local.config();
        let (std, vocab_size) = (config.initializer_range, config.vocab_size as u32);
        let init = TableInit { rule: InitRule::Normal, deep: None, std, vocab_size, seed: 0 };
        let tables = PromptTables::initialise(shape, &init, |ids| self.local.embeddings(ids))?;
        let optimizer = AdamW::new(&shape, 0.0);
        Ok(PromptTuner::new(self.sequence.clone(), self.local.clone(), tables, optimizer, passes.clone()))
    }

    fn examples(&self, task: Task) -> Vec<Example> {
        let Workload { batch, length, .. } = self.workload;
        let example = |row| Example {
            tokens: (0..length).map(|at| self.token(row, at)).collect(),
            target: match task {
                Task::CausalLm => Target::NextToken { from: 1 },
                Task::SeqCls => Target::Class(row % LABELS),
            },
        };
        (0..batch).map(example).collect()
    }

    /// Some token of the vocabulary, another one at each place.
    fn token(&self, row: usize, at: usize) -> u32 {
        ((row * 7919 + at * 104_729 + 3) % self.local.config().vocab_size) as u32
    }
}

/// Counters of a sequence at the start of a repetition.
struct Meter<'a> {
    sequence: &'a RemoteSequence,
    traffic: TrafficCount,
    servers: BTreeMap<PeerId, ServerWork>,
    started: Instant,
}

impl<'a> Meter<'a> {
    fn start(sequence: &'a RemoteSequence) -> Self {
        let (traffic, servers) = (sequence.traffic(), sequence.work());
        Self { sequence, traffic, servers, started: Instant::now() }
    }

    fn stop(self, tokens: usize) -> Repetition {
        let elapsed = self.started.elapsed();
        let servers = self.sequence.work().into_iter().map(|(peer, work)| {
            let before = self.servers.get(&peer).copied().unwrap_or_default();
            (peer, work.since(before))
        });
        let servers = servers.filter(|(_, work)| work.passes > 0).collect();
        let traffic = self.sequence.traffic().since(&self.traffic);
        Repetition { elapsed, tokens, traffic, servers, hops: Vec::new() }
    }
}
