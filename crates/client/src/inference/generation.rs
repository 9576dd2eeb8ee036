//! Text that grows token by token, several tokens per round trip where they can be foreseen.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use petals_protocol::Span;
use petals_swarm::PeerId;

use super::logits::{LogitsError, RemoteModel};
use super::logprobs::TokenLogprobs;
use super::sampler::{Sampler, Sampling, SamplingError};
use super::text_session::TextSession;
use crate::planner::Hop;
use crate::sequence::HopTiming;
use draft::Drafter;

mod beam;
mod draft;
mod draft_model;
mod lookup;
mod pace;
mod score;

pub use beam::{BeamConfig, EarlyStopping, beam_search};
pub use draft_model::DraftModel;

/// How a text is continued.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
    /// How tokens are foreseen.
    pub speculation: Speculation,
}

impl Default for GenerationConfig {
    /// Greedy, without an end but what the generator has room for.
    fn default() -> Self {
        Self {
            sampling: Sampling::default(),
            max_new_tokens: usize::MAX,
            stop_tokens: Vec::new(),
            speculation: Speculation::default(),
        }
    }
}

/// How the next tokens are foreseen. Several foreseen tokens are sent in one step, which says for each of them whether it is the
/// one that would have been chosen; those from the first wrong one on are taken back. So the text is the same as without, greedy or
/// sampled, but for ties that rounding decides: rows of one step are computed together. How many tokens are worth sending is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Foresee that text goes on as it did at an earlier place that ended alike.
    pub lookup: bool,
    /// Most foreseen tokens of one step; 0 foresees none, not with a draft model either.
    pub max_draft: usize,
}

impl Speculation {
    /// One token per step.
    pub const OFF: Self = Self { lookup: false, max_draft: 0 };
}

impl Default for Speculation {
    /// Lookup, with at most 16 tokens.
    fn default() -> Self {
        Self { lookup: true, max_draft: 16 }
    }
}

/// Why a text could not be continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// There is no token to continue.
    #[error("the text to continue has no tokens")]
    Empty,
    /// The text fills the session already.
    #[error("the text has {tokens} tokens, and there is room for {room} with at least one more")]
    TooLong {
        /// Tokens of the text.
        tokens: usize,
        /// Most tokens of a text.
        room: usize,
    },
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The pass through the swarm, or the local part, failed.
    #[error(transparent)]
    Logits(#[from] LogitsError),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// With a stop token, which is the last of the tokens.
    StopToken,
    /// All the tokens asked for, or all that there was room for.
    Length,
    /// The receiver of the tokens has enough.
    Stopped,
}

/// A text's continuation, and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
    /// Tokens of the prompt that were computed already, for the text before.
    pub reused: usize,
    /// Steps through all blocks, the one that reads the prompt included.
    pub steps: usize,
    /// Foreseen tokens that were sent.
    pub drafted: usize,
    /// Those that were right.
    pub accepted: usize,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// From the call to the last token.
    pub elapsed: Duration,
    /// What each hop took, in all steps together; in the order of their first use.
    pub hops: Vec<HopUse>,
}

/// What one hop took in a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct HopUse {
    /// The server.
    pub peer: PeerId,
    /// The blocks it ran.
    pub span: Span,
    /// Steps it took part in.
    pub steps: usize,
    /// Sums over these steps.
    pub timing: HopTiming,
}

impl Generation {
    fn new(reused: usize) -> Self {
        Self {
            tokens: Vec::new(),
            finish: Finish::Length,
            reused,
            steps: 0,
            drafted: 0,
            accepted: 0,
            time_to_first_token: Duration::ZERO,
            elapsed: Duration::ZERO,
            hops: Vec::new(),
        }
    }

    /// Tokens per second behind the first one; nothing if there are no others.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let seconds = self.elapsed.saturating_sub(self.time_to_first_token).as_secs_f64();
        let others = self.tokens.len().saturating_sub(1);
        (others > 0 && seconds > 0.0).then(|| others as f64 / seconds)
    }

    fn add(&mut self, timings: &[(Hop, HopTiming)]) {
        for &(Hop { peer, span }, timing) in timings {
            match self.hops.iter_mut().find(|hop| (hop.peer, hop.span) == (peer, span)) {
                Some(hop) => {
                    hop.steps += 1;
                    hop.timing.add(timing);
                }
                None => self.hops.push(HopUse { peer, span, steps: 1, timing }),
            }
        }
    }
}

/// Continues texts, one after another, and keeps the last one on the servers: of the next text only what is behind the common
/// beginning is computed, so a conversation pays for what is new.
///
/// A generator takes one text at a time; several of them (they share the model) run at the same time. A call that failed or was
/// dropped half-way leaves a generator that can be used: at worst it computes its next text from the start.
#[derive(Debug)]
pub struct Generator {
    session: TextSession,
    max_tokens: usize,
    /// What the session has been given.
    tokens: Vec<u32>,
    drafter: Drafter,
}

impl Generator {
    /// A generator of texts of at most `max_tokens` tokens, prompt included; servers hold memory for as many. The model's limit
    /// (`max_position_embeddings` less the prefix of the prompt tables) is the caller's to keep.
    pub fn new(model: RemoteModel, max_tokens: usize) -> Self {
        let session = TextSession::new(model, 1, max_tokens);
        Self { session, max_tokens, tokens: Vec::new(), drafter: Drafter::new(None) }
    }

    /// Lets a small model foresee tokens, beside lookup if that is on.
    #[must_use]
    pub fn with_draft_model(self, model: DraftModel) -> Self {
        Self { drafter: Drafter::new(Some(model)), ..self }
    }

    /// Most tokens of a text.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Continues `text` (the whole of it, not just what is new). `on_tokens` gets each run of new tokens as soon as it is known, a stop
    /// token included; with [`ControlFlow::Break`] it ends the generation.
    ///
    /// # Errors
    /// [`GenerationError`].
    pub async fn generate(
        &mut self,
        text: &[u32],
        config: &GenerationConfig,
        mut on_tokens: impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Generation, GenerationError> {
        self.run(text, config, None, |tokens, _| on_tokens(tokens)).await
    }

    /// As [`Self::generate`]; `on_tokens` is told as well how probable each of the tokens was, with the `top` most probable ones of its place.
    ///
    /// # Errors
    /// [`GenerationError`].
    pub async fn generate_scored(
        &mut self,
        text: &[u32],
        config: &GenerationConfig,
        top: usize,
        on_tokens: impl FnMut(&[u32], Vec<TokenLogprobs>) -> ControlFlow<()>,
    ) -> Result<Generation, GenerationError> {
        self.run(text, config, Some(top), on_tokens).await
    }

    async fn run(
        &mut self,
        text: &[u32],
        config: &GenerationConfig,
        top: Option<usize>,
        mut on_tokens: impl FnMut(&[u32], Vec<TokenLogprobs>) -> ControlFlow<()>,
    ) -> Result<Generation, GenerationError> {
        let started = Instant::now();
        let mut sampler = Sampler::new(config.sampling.clone())?.behind(text.len());
        let Some(last) = text.len().checked_sub(1) else { return Err(GenerationError::Empty) };
        let room = self.max_tokens.saturating_sub(text.len());
        if room == 0 {
            return Err(GenerationError::TooLong { tokens: text.len(), room: self.max_tokens });
        }
        let end = text.len() + config.max_new_tokens.min(room);
        let prompt = text.len();
        let mut text = text.to_vec();
        // The last token is sent in any case: the logits behind it are wanted.
        self.keep(&text[..last]);
        let mut generation = Generation::new(self.tokens.len());
        while text.len() < end {
            // Each step brings a token of its own behind the foreseen ones.
            let (most, prefill) = (end - text.len() - 1, text.len() == prompt);
            let draft = self.drafter.draft(&text, most, config.speculation, prefill, &sampler).await;
            let began = Instant::now();
            let logits = self.step(&text, &draft).await?;
            generation.steps += 1;
            generation.drafted += draft.len();
            generation.add(self.session.timings());
            let seen = text.len();
            let accepted = extend(&mut text, end, &logits, &draft, &mut sampler, &config.stop_tokens);
            generation.accepted += accepted;
            self.drafter.learn(&text[seen..], (!prefill).then(|| began.elapsed()));
            self.keep(&text[..text.len() - 1]);
            generation.elapsed = started.elapsed();
            if prefill {
                generation.time_to_first_token = generation.elapsed;
            }
            let new = &text[seen..];
            let Some(last) = new.last() else { break };
            let scores = top.map(|top| scores(&logits, draft.len() + 1, new, top));
            let enough = on_tokens(new, scores.unwrap_or_default()).is_break();
            if config.stop_tokens.contains(last) {
                generation.finish = Finish::StopToken;
                break;
            }
            if enough {
                generation.finish = Finish::Stopped;
                break;
            }
        }
        generation.tokens = text.split_off(prompt);
        Ok(generation)
    }

    /// Takes back what the session has beyond the beginning that it shares with `text`.
    fn keep(&mut self, text: &[u32]) {
        // A call that was dropped may have left one of the two ahead of the other.
        let has = self.session.lengths().first().map_or(0, |&length| length.min(self.tokens.len()));
        let common = self.tokens[..has].iter().zip(text).take_while(|(has, wanted)| has == wanted).count();
        self.tokens.truncate(common);
        self.session.rollback(&[common]);
    }

    /// Sends what the session lacks of `text`, and `draft` behind it. Returns the logits behind the text and behind each token of the
    /// draft, `[1 + draft, vocab]`.
    async fn step(&mut self, text: &[u32], draft: &[u32]) -> Result<Vec<f32>, LogitsError> {
        let missing = &text[self.tokens.len()..];
        let new = [missing, draft].concat();
        let read: Vec<u32> = (missing.len() as u32 - 1..new.len() as u32).collect();
        let logits = self.session.append_and_read(std::slice::from_ref(&new), &read).await?;
        self.tokens.extend(new);
        Ok(logits)
    }
}

/// How probable `tokens` were at the first of `rows` places with these logits.
fn scores(logits: &[f32], rows: usize, tokens: &[u32], top: usize) -> Vec<TokenLogprobs> {
    let places = logits.chunks_exact((logits.len() / rows).max(1));
    places.zip(tokens).map(|(logits, &token)| TokenLogprobs::of(logits, token, top)).collect()
}

/// Chooses tokens from rows of logits as long as they are the foreseen ones, and one more. Returns how many were foreseen.
fn extend(
    text: &mut Vec<u32>,
    end: usize,
    logits: &[f32],
    draft: &[u32],
    sampler: &mut Sampler,
    stop: &[u32],
) -> usize {
    let vocabulary = (logits.len() / (draft.len() + 1)).max(1);
    let mut accepted = 0;
    for (number, logits) in logits.chunks_exact(vocabulary).enumerate() {
        let Some(token) = sampler.choose(logits, text) else { break };
        text.push(token);
        let foreseen = draft.get(number) == Some(&token);
        accepted += usize::from(foreseen);
        if !foreseen || stop.contains(&token) || text.len() == end {
            break;
        }
    }
    accepted
}
