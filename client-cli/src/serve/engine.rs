//! Generating the texts of requests.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use petals_client::{Finish, Generation, GenerationConfig, GenerationError, Generator, RemoteModel, Sampling};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::error::ApiError;
use super::metrics::{Metrics, Now};
use super::models::ServedModel;
use super::{Gate, Pool};
use crate::text::{TextStream, TextTokenizer};

/// A text that waits so long for its first token makes finished ones give way, one after another.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tokens that a conversation has room for at least, unless the model has less.
const CONVERSATION: usize = 1024;

/// Runs texts through the swarm, and keeps them for what follows.
#[derive(Debug)]
pub(crate) struct Engine {
    /// The model without an adapter.
    model: RemoteModel,
    tokenizer: Arc<TextTokenizer>,
    gate: Gate,
    pool: Pool,
    metrics: Metrics,
}

/// A text to be continued.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Its number among the request's.
    pub(super) number: usize,
    /// By which model.
    pub(super) model: Arc<ServedModel>,
    /// The text.
    pub(super) prompt: Arc<Vec<u32>>,
    /// How tokens are chosen.
    pub(super) sampling: Sampling,
    /// Most new tokens. They fit behind the prompt.
    pub(super) max_new_tokens: usize,
    /// Texts that end it.
    pub(super) stop: Vec<String>,
    /// Whether the text is likely to be gone on from.
    pub(super) conversation: bool,
    /// When the request came.
    pub(super) arrived: Instant,
}

/// What happens to a text.
#[derive(Debug)]
pub(super) enum Progress {
    /// It grew.
    Grew(String),
    /// It is complete.
    Done(Done),
    /// There will be no more of it.
    Failed(ApiError),
}

/// A complete text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    /// `stop` or `length`.
    pub(super) finish: &'static str,
    /// New tokens.
    pub(super) tokens: usize,
    /// Tokens of the prompt that did not have to be computed.
    pub(super) reused: usize,
}

impl Engine {
    /// An engine over a connected model.
    pub(crate) fn new(model: RemoteModel, tokenizer: Arc<TextTokenizer>, gate: Gate, pool: Pool) -> Self {
        Self { model, tokenizer, gate, pool, metrics: Metrics::default() }
    }

    /// The model's tokenizer.
    pub(super) fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// Tokens that the model knows.
    pub(super) fn vocabulary(&self) -> usize {
        self.model.local.config().vocab_size
    }

    /// Figures.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Figures as Prometheus reads them.
    pub(super) fn render_metrics(&self) -> String {
        self.metrics.render(Now { active: self.gate.active(), waiting: self.gate.waiting(), idle: self.pool.len() })
    }

    /// Drops finished texts that nobody came back to.
    pub(crate) fn expire(&self) {
        self.pool.expire();
    }

    /// Begins nothing new, and keeps nothing.
    pub(crate) fn close(&self) {
        self.gate.close();
        self.pool.clear();
    }

    /// Starts the texts of a request, once it is their turn. If the receiver is dropped they end, and their sessions with them.
    ///
    /// # Errors
    /// 429 and 503, see [`Gate::enter`].
    pub(super) async fn start(self: &Arc<Self>, jobs: Vec<Job>) -> Result<mpsc::Receiver<(usize, Progress)>, ApiError> {
        let permit = Arc::new(self.gate.enter(jobs.len()).await?);
        // A reader that is slower than the swarm does not hold it up, nor lose anything.
        let room = jobs.iter().map(|job| job.max_new_tokens + 2).sum();
        let (sender, receiver) = mpsc::channel(room);
        for job in jobs {
            let (engine, sender, permit) = (self.clone(), sender.clone(), permit.clone());
            tokio::spawn(async move { engine.run(job, &sender, permit).await });
        }
        Ok(receiver)
    }

    async fn run(&self, job: Job, sender: &mpsc::Sender<(usize, Progress)>, _permit: Arc<OwnedSemaphorePermit>) {
        let (number, model) = (job.number, job.model.clone());
        let waiting = AtomicBool::new(true);
        let outcome = tokio::select! {
            biased;
            // Nobody reads it any more: the generator is dropped half-way, and its session ends.
            () = sender.closed() => {
                self.metrics.text(&model.name, "cancelled");
                return;
            }
            outcome = self.generate(job, sender, &waiting) => outcome,
            // Never ends.
            () = self.make_room(&waiting) => return,
        };
        let (last, how) = match outcome {
            Ok(done) => (Progress::Done(done), done.finish),
            Err(error) => (Progress::Failed(ApiError::of_generation(error)), "failed"),
        };
        self.metrics.text(&model.name, how);
        let _ = sender.try_send((number, last));
    }

    /// Gives up finished texts, the oldest first, while a text waits for its first token: they may be what it waits for, since a
    /// server grants each client so much memory.
    async fn make_room(&self, waiting: &AtomicBool) {
        loop {
            tokio::time::sleep(PATIENCE).await;
            if waiting.load(Ordering::Relaxed) {
                self.pool.give_up_oldest();
            }
        }
    }

    async fn generate(
        &self,
        job: Job,
        sender: &mpsc::Sender<(usize, Progress)>,
        waiting: &AtomicBool,
    ) -> Result<Done, GenerationError> {
        let model = &job.model;
        let needed = job.prompt.len() + job.max_new_tokens;
        let mut generator = self.pool.take(&model.name, &job.prompt, needed).unwrap_or_else(|| {
            // A conversation gets room to grow into.
            let room =
                if job.conversation { needed.saturating_mul(2).max(CONVERSATION).min(model.room) } else { needed };
            Generator::new(self.model.clone().with_tables(model.tables.clone()), room)
        });
        let config = GenerationConfig {
            sampling: job.sampling,
            max_new_tokens: job.max_new_tokens,
            stop_tokens: self.tokenizer.stop_tokens().to_vec(),
            ..GenerationConfig::default()
        };
        let mut text = TextStream::new(&self.tokenizer, &job.prompt, job.stop.clone());
        let mut last_token: Option<Instant> = None;
        let send = |piece: String| {
            if !piece.is_empty() {
                let _ = sender.try_send((job.number, Progress::Grew(piece)));
            }
        };
        let generation = generator.generate(&job.prompt, &config, |tokens| {
            waiting.store(false, Ordering::Relaxed);
            match last_token.replace(Instant::now()) {
                None => self.metrics.first_token(&model.name, job.arrived.elapsed()),
                Some(before) => self.metrics.tokens(&model.name, tokens.len(), before.elapsed()),
            }
            // What the tokenizer cannot decode is left out: it has decoded every token of its own so far.
            send(text.push(tokens).unwrap_or_default());
            if text.has_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let generation = generation.await?;
        send(text.finish().unwrap_or_default());
        self.metrics.generation(&model.name, job.prompt.len(), &generation);
        let Generation { tokens, finish, reused, .. } = generation;
        let cut_off = finish == Finish::Length && !text.has_stopped();
        // Tokens behind a stop string, which may come with it in one step, do not count.
        let done = Done { finish: if cut_off { "length" } else { "stop" }, tokens: text.tokens().len(), reused };
        let mut whole = job.prompt.to_vec();
        whole.extend(tokens);
        let room = generator.max_tokens();
        self.pool.put(&model.name, whole, room, generator);
        Ok(done)
    }
}
