//! Generating the texts of requests.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use petals_client::{Allowed, Finish, Generation, GenerationConfig, Generator, RemoteModel, Sampling, TokenLogprobs};
use petals_page::ShownRoute;
use tokio::sync::mpsc;

use super::caller::Caller;
use super::error::ApiError;
use super::grammar::{Form, Grammar, Grammars};
use super::metrics::{Metrics, Now};
use super::models::ServedModel;
use super::parameters::Parameters;
use super::{Gate, Pool};
use crate::text::{Pieces, TextStream, TextTokenizer};

/// Texts of a request that are generated at a time; its others wait for these.
const SIDE_BY_SIDE: usize = 16;

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
    pieces: Arc<Pieces>,
    grammars: Grammars,
    gate: Gate,
    pool: Pool,
    metrics: Metrics,
}

/// What the texts of a request have in common.
#[derive(Debug)]
pub(super) struct Plan {
    /// By which model.
    pub(super) model: Arc<ServedModel>,
    /// Whose they are.
    pub(super) caller: Caller,
    /// Texts that end a text.
    pub(super) stop: Vec<String>,
    /// Tokens that end it.
    pub(super) stop_tokens: Vec<u32>,
    /// Whether the texts are likely to be gone on from.
    pub(super) conversation: bool,
    /// When the request came.
    pub(super) arrived: Instant,
    /// How many of the most probable tokens are wanted for each new one, with their probabilities.
    pub(super) logprobs: Option<usize>,
    /// The same for the tokens of the prompts.
    pub(super) prompt_logprobs: Option<usize>,
    /// What the texts must be like.
    pub(super) grammar: Option<Arc<Grammar>>,
    /// Special tokens that are to be seen in the text, and as what.
    pub(super) marks: Vec<(u32, String)>,
}

/// A text to be continued.
#[derive(Debug)]
pub(super) struct Job {
    /// Its number among the request's.
    pub(super) number: usize,
    /// What it has in common with the others.
    pub(super) plan: Arc<Plan>,
    /// The text.
    pub(super) prompt: Arc<Vec<u32>>,
    /// How tokens are chosen.
    pub(super) sampling: Sampling,
    /// Most new tokens. They fit behind the prompt.
    pub(super) max_new_tokens: usize,
}

/// What happens to a text.
#[derive(Debug)]
pub(super) enum Progress {
    /// How probable the prompt's tokens are, from the second one on.
    Prompt(Vec<TokenLogprobs>),
    /// It grew.
    Grew(Piece),
    /// It is complete.
    Done(Done),
    /// There will be no more of it.
    Failed(ApiError),
}

/// Some more of a text.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// The text that is certain by now.
    pub(super) text: String,
    /// How probable the new tokens were, if that is wanted. Their text may come later.
    pub(super) logprobs: Vec<TokenLogprobs>,
}

/// A complete text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Done {
    /// `stop` or `length`.
    pub(super) finish: &'static str,
    /// The stop text that ended it, if one did.
    pub(super) stop: Option<String>,
    /// New tokens.
    pub(super) tokens: usize,
    /// Tokens of the prompt that did not have to be computed.
    pub(super) reused: usize,
    /// The logarithm of the text's probability, if probabilities were asked for.
    pub(super) logprob: Option<f64>,
}

impl Engine {
    /// An engine over a connected model.
    pub(crate) fn new(model: RemoteModel, tokenizer: Arc<TextTokenizer>, gate: Gate, pool: Pool) -> Self {
        let pieces = Arc::new(Pieces::new(tokenizer.clone()));
        let grammars = Grammars::new(pieces.clone(), model.local.config().vocab_size);
        Self { model, tokenizer, pieces, grammars, gate, pool, metrics: Metrics::default() }
    }

    /// What single tokens stand for.
    pub(super) fn pieces(&self) -> &Arc<Pieces> {
        &self.pieces
    }

    /// The model without an adapter.
    pub(super) fn model(&self) -> &RemoteModel {
        &self.model
    }

    /// How many texts at a time.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The model's tokenizer.
    pub(super) fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// Tokens that the model knows.
    pub(super) fn vocabulary(&self) -> usize {
        self.model.local.config().vocab_size
    }

    /// Numbers of a hidden state.
    pub(super) fn hidden_size(&self) -> usize {
        self.model.local.config().hidden_size
    }

    /// The tokens that end the texts of a request.
    pub(super) fn stop_tokens(&self, parameters: &Parameters) -> Vec<u32> {
        let own = if parameters.ignore_eos { &[] } else { self.tokenizer.stop_tokens() };
        own.iter().chain(&parameters.stop_tokens).copied().collect()
    }

    /// What the texts of a request must be like, made ready, if it says.
    ///
    /// # Errors
    /// 400 and 503, see [`Grammars::compile`].
    pub(super) async fn grammar(&self, form: Option<Form>) -> Result<Option<Arc<Grammar>>, ApiError> {
        match form {
            None => Ok(None),
            Some(form) => self.grammars.compile(form).await.map(Some),
        }
    }

    /// Figures.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Figures as Prometheus reads them.
    pub(crate) fn render_metrics(&self) -> String {
        self.metrics.render(Now { active: self.gate.active(), waiting: self.gate.waiting(), idle: self.pool.len() })
    }

    /// The way that the latest text took.
    pub(crate) fn route(&self) -> Option<ShownRoute> {
        self.metrics.route()
    }

    /// Tokens that were generated since the start.
    pub(crate) fn new_tokens(&self) -> u64 {
        self.metrics.new_tokens()
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
        let mut places = self.gate.enter(jobs.len().min(SIDE_BY_SIDE)).await?;
        // A reader that is slower than the swarm does not hold it up, nor lose anything.
        let room = jobs.iter().map(|job| job.max_new_tokens + 3).sum();
        let (sender, receiver) = mpsc::channel(room);
        let jobs = Arc::new(Mutex::new(VecDeque::from(jobs)));
        while let Some(place) = places.split(1) {
            let (engine, sender, jobs) = (self.clone(), sender.clone(), jobs.clone());
            tokio::spawn(async move {
                let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(job) = next() {
                    engine.run(job, &sender).await;
                }
                drop(place);
            });
        }
        Ok(receiver)
    }

    async fn run(&self, job: Job, sender: &mpsc::Sender<(usize, Progress)>) {
        let (number, model) = (job.number, job.plan.model.clone());
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
            Ok(done) => {
                let how = done.finish;
                (Progress::Done(done), how)
            }
            Err(error) => (Progress::Failed(error), "failed"),
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
    ) -> Result<Done, ApiError> {
        let Job { number, plan, prompt, sampling, max_new_tokens } = job;
        let model = &plan.model;
        let needed = prompt.len() + max_new_tokens;
        let mut generator = self.pool.take((plan.caller, &model.name), &prompt, needed).unwrap_or_else(|| {
            // A conversation gets room to grow into.
            let room =
                if plan.conversation { needed.saturating_mul(2).max(CONVERSATION).min(model.room) } else { needed };
            let salted = self.model.clone().with_cache_salt(plan.caller.salt());
            Generator::new(salted.with_tables(model.tables.clone()), room)
        });
        if let Some(top) = plan.prompt_logprobs {
            let scores = generator.score(&prompt, top).await.map_err(ApiError::of_generation)?;
            waiting.store(false, Ordering::Relaxed);
            let _ = sender.try_send((number, Progress::Prompt(scores)));
        }
        if max_new_tokens == 0 {
            return Ok(Done { finish: "length", stop: None, tokens: 0, reused: 0, logprob: None });
        }
        let walk = plan.grammar.as_ref().map(|grammar| Arc::new(grammar.walk(&plan.stop_tokens)));
        let constraint = walk.clone().map(|walk| Allowed::new(walk));
        let config = GenerationConfig {
            sampling: Sampling { constraint, ..sampling },
            max_new_tokens,
            stop_tokens: plan.stop_tokens.clone(),
            ..GenerationConfig::default()
        };
        let mut text = TextStream::new(&self.tokenizer, &prompt, plan.stop.clone());
        let mut last_token: Option<Instant> = None;
        let mut logprob = plan.logprobs.map(|_| 0.0);
        let mut complete = false;
        let send = |piece: Piece| {
            if !piece.text.is_empty() || !piece.logprobs.is_empty() {
                let _ = sender.try_send((number, Progress::Grew(piece)));
            }
        };
        let mut on_tokens = |tokens: &[u32], mut logprobs: Vec<TokenLogprobs>| {
            waiting.store(false, Ordering::Relaxed);
            match last_token.replace(Instant::now()) {
                None => self.metrics.first_token(&model.name, plan.arrived.elapsed()),
                Some(before) => self.metrics.tokens(&model.name, tokens.len(), before.elapsed()),
            }
            let before = text.tokens().len();
            // Foreseen tokens may come behind the end.
            let end = walk.as_ref().and_then(|walk| walk.end(&[text.tokens(), tokens].concat()));
            let tokens = tokens.get(..end.map_or(tokens.len(), |end| end.saturating_sub(before))).unwrap_or(tokens);
            let new = grow(&mut text, tokens, &plan.marks);
            // Tokens behind a stop string, which may come with it in one step, do not count.
            logprobs.truncate(text.tokens().len() - before);
            if let Some(sum) = &mut logprob {
                *sum += logprobs.iter().map(|token| f64::from(token.logprob)).sum::<f64>();
            }
            if walk.as_ref().is_some_and(|walk| walk.failure().is_some()) {
                return ControlFlow::Break(());
            }
            send(Piece { text: new, logprobs });
            complete = end.is_some();
            if complete || text.has_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generation = match plan.logprobs {
            Some(top) => generator.generate_scored(&prompt, &config, top, &mut on_tokens).await,
            None => generator.generate(&prompt, &config, |tokens| on_tokens(tokens, Vec::new())).await,
        };
        let generation = generation.map_err(ApiError::of_generation)?;
        if let Some((grammar, failure)) = plan.grammar.as_ref().zip(walk.and_then(|walk| walk.failure())) {
            return Err(grammar.failed(&failure));
        }
        send(Piece { text: text.finish().unwrap_or_default(), logprobs: Vec::new() });
        self.metrics.generation(&model.name, prompt.len(), &generation);
        let Generation { tokens, finish, reused, .. } = generation;
        let cut_off = finish == Finish::Length && !text.has_stopped() && !complete;
        let finish = if cut_off { "length" } else { "stop" };
        let stop = text.stop().map(str::to_owned);
        let done = Done { finish, stop, tokens: text.tokens().len(), reused, logprob };
        let mut whole = prompt.to_vec();
        whole.extend(tokens);
        let room = generator.max_tokens();
        self.pool.put((plan.caller, &model.name), whole, room, generator);
        Ok(done)
    }
}

/// Adds tokens to a text, and returns what is new and certain. Special tokens are not seen in it, but for marks.
fn grow(text: &mut TextStream<'_>, tokens: &[u32], marks: &[(u32, String)]) -> String {
    // What the tokenizer cannot decode is left out: it has decoded every token of its own so far.
    if marks.is_empty() {
        return text.push(tokens).unwrap_or_default();
    }
    let mut new = String::new();
    for token in tokens {
        if let Some((_, mark)) = marks.iter().find(|(marked, _)| marked == token && !text.has_stopped()) {
            new += mark;
        }
        new += &text.push(std::slice::from_ref(token)).unwrap_or_default();
    }
    new
}
