//! Beam search: several continuations at a time, of which the most probable as a whole is taken.

use std::time::Instant;

use super::{Finish, Generation, GenerationError};
use crate::inference::logits::RemoteModel;
use crate::inference::sampler::{Ranked, penalised};
use crate::inference::text_session::TextSession;

/// When a beam search ends before it has all the tokens it may have, as transformers' `early_stopping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// `False`: when the best text under way, were it over now, would be worse than the worst finished one.
    #[default]
    Heuristic,
    /// `True`: when there are as many finished texts as beams.
    First,
    /// `"never"`: when no text under way can become better than the worst finished one.
    Never,
}

/// How a beam search goes. Equal to transformers' `generate(num_beams=…, do_sample=False)`.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamConfig {
    /// Texts under way, at least 1.
    pub beams: usize,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end a text.
    pub stop_tokens: Vec<u32>,
    /// A finished text's logarithmic probability is divided by its number of new tokens to this power: above 0 favours long texts, below
    /// short ones.
    pub length_penalty: f32,
    /// When to stop looking.
    pub early_stopping: EarlyStopping,
    /// As [`crate::Sampling::repetition_penalty`], on logarithmic probabilities.
    pub repetition_penalty: f32,
}

impl Default for BeamConfig {
    /// transformers' defaults, with three beams and 20 tokens.
    fn default() -> Self {
        Self {
            beams: 3,
            max_new_tokens: 20,
            stop_tokens: Vec::new(),
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            repetition_penalty: 1.0,
        }
    }
}

/// A text under way, or finished.
#[derive(Debug, Clone)]
struct Hypothesis {
    tokens: Vec<u32>,
    /// Its logarithmic probability; of a finished one after the length penalty.
    score: f32,
}

/// Continues `text` by beam search over one session that has a sequence for each beam. A text also ends with the token that makes
/// `is_over` say so of all its new tokens (of a stop string, say); for every beam it is asked about a few candidates a step.
///
/// # Errors
/// [`GenerationError`].
pub async fn beam_search(
    model: RemoteModel,
    text: &[u32],
    config: &BeamConfig,
    is_over: impl Fn(&[u32]) -> bool,
) -> Result<Generation, GenerationError> {
    let started = Instant::now();
    if text.is_empty() {
        return Err(GenerationError::Empty);
    }
    let beams = config.beams.max(1);
    let mut session = TextSession::new(model, beams, text.len().saturating_add(config.max_new_tokens));
    let mut search = Search::new(text, config, is_over);
    let mut generation = Generation::new(0);
    let mut new: Vec<Vec<u32>> = vec![Vec::new(); beams];
    new[0] = text.to_vec();
    while !search.over {
        let logits = session.append(&new).await.map_err(GenerationError::Logits)?;
        generation.steps += 1;
        generation.add(session.timings());
        let order = search.advance(&logits);
        if generation.steps == 1 {
            generation.time_to_first_token = started.elapsed();
        }
        if !search.over {
            session.reorder(&order);
            new = search.running.iter().map(|running| running.tokens.last().copied().into_iter().collect()).collect();
        }
    }
    generation.tokens = search.best();
    if generation.tokens.last().is_some_and(|last| config.stop_tokens.contains(last)) {
        generation.finish = Finish::StopToken;
    } else if (search.is_over)(&generation.tokens) {
        generation.finish = Finish::Stopped;
    }
    generation.elapsed = started.elapsed();
    Ok(generation)
}

/// The part without a network.
struct Search<'a, F> {
    config: &'a BeamConfig,
    prompt: &'a [u32],
    is_over: F,
    /// New tokens of each, the best first.
    running: Vec<Hypothesis>,
    /// The best that are finished, the best first; at most as many as beams.
    finished: Vec<Hypothesis>,
    /// New tokens of those under way.
    length: usize,
    over: bool,
}

impl<'a, F: Fn(&[u32]) -> bool> Search<'a, F> {
    fn new(prompt: &'a [u32], config: &'a BeamConfig, is_over: F) -> Self {
        let running = vec![Hypothesis { tokens: Vec::new(), score: 0.0 }];
        Self { config, prompt, is_over, running, finished: Vec::new(), length: 0, over: config.max_new_tokens == 0 }
    }

    /// Takes the logits behind each text under way, `[running, vocab]`. Returns which of them each of the next ones continues.
    fn advance(&mut self, logits: &[f32]) -> Vec<u32> {
        let BeamConfig { beams, ref stop_tokens, .. } = *self.config;
        let beams = beams.max(1);
        let vocabulary = (logits.len() / self.running.len()).max(1);
        let mut scores = Vec::with_capacity(logits.len());
        for (running, logits) in self.running.iter().zip(logits.chunks_exact(vocabulary)) {
            let text = [self.prompt, &running.tokens].concat();
            let logarithms = log_softmax(logits);
            let processed = penalised(&logarithms, &text, self.config.repetition_penalty);
            scores.extend(processed.iter().map(|score| score + running.score));
        }
        // As many as there must be for `beams` of them not to have ended.
        let candidates = (1 + stop_tokens.len()).max(2) * beams;
        let mut ranked = Ranked::new(&scores, 1.0, candidates);
        self.length += 1;
        let last = self.length >= self.config.max_new_tokens;
        let (mut next, mut order) = (Vec::new(), Vec::new());
        let mut all_ended = true;
        for rank in 0..candidates {
            let Some((index, _)) = ranked.get(rank) else { break };
            let (from, token) = (index as usize / vocabulary, (index as usize % vocabulary) as u32);
            let score = scores[index as usize];
            let mut tokens = self.running[from].tokens.clone();
            tokens.push(token);
            let ended = last || stop_tokens.contains(&token) || (self.is_over)(&tokens);
            all_ended &= ended;
            if ended && rank >= beams {
                continue;
            }
            if ended {
                self.finish(tokens, score);
            } else if next.len() < beams {
                next.push(Hypothesis { tokens, score });
                order.push(from as u32);
            }
        }
        let full = self.finished.len() >= beams;
        let first_of_all = full && self.config.early_stopping == EarlyStopping::First;
        self.over = all_ended || first_of_all || next.is_empty() || !self.may_improve(&next);
        self.running = next;
        order
    }

    fn finish(&mut self, tokens: Vec<u32>, score: f32) {
        let beams = self.config.beams.max(1);
        let score = score / (self.length as f32).powf(self.config.length_penalty);
        let place = self.finished.partition_point(|finished| finished.score >= score);
        self.finished.insert(place, Hypothesis { tokens, score });
        self.finished.truncate(beams);
    }

    /// Whether a text under way may still become better than the worst finished one.
    fn may_improve(&self, next: &[Hypothesis]) -> bool {
        let BeamConfig { beams, early_stopping, length_penalty, max_new_tokens, .. } = *self.config;
        let Some(worst) = self.finished.last().filter(|_| self.finished.len() >= beams.max(1)) else { return true };
        let longest = early_stopping == EarlyStopping::Never && length_penalty > 0.0;
        let length = if longest { max_new_tokens } else { self.length };
        next.first().is_some_and(|best| best.score / (length as f32).powf(length_penalty) > worst.score)
    }

    fn best(&mut self) -> Vec<u32> {
        let best = self.finished.first_mut().or(self.running.first_mut());
        best.map(|best| std::mem::take(&mut best.tokens)).unwrap_or_default()
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - highest).exp()).sum();
    let base = highest + sum.ln();
    logits.iter().map(|logit| logit - base).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of one step for each beam under way: what a text is made of decides what comes next.
    fn logits(search: &Search<'_, impl Fn(&[u32]) -> bool>) -> Vec<f32> {
        let logit = |tokens: &[u32], token: u32| ((token * 7 + tokens.iter().sum::<u32>() * 3) % 11) as f32;
        let next = |beam: &Hypothesis| (0..5).map(|token| logit(&beam.tokens, token)).collect::<Vec<_>>();
        search.running.iter().flat_map(next).collect()
    }

    fn run(config: &BeamConfig, is_over: impl Fn(&[u32]) -> bool) -> Vec<u32> {
        let mut search = Search::new(&[1], config, is_over);
        while !search.over {
            let logits = logits(&search);
            search.advance(&logits);
        }
        search.best()
    }

    /// With as many candidates as there must be for a stop token.
    #[test]
    fn what_is_said_to_be_over_ends_like_a_stop_token() {
        for early_stopping in [EarlyStopping::Heuristic, EarlyStopping::First, EarlyStopping::Never] {
            let config = BeamConfig { beams: 2, max_new_tokens: 12, early_stopping, ..BeamConfig::default() };
            let whole = run(&config, |_| false);
            assert_eq!(whole.len(), 12);
            for stop in 0..5 {
                let by_token = run(&BeamConfig { stop_tokens: vec![stop], ..config.clone() }, |_| false);
                assert_eq!(run(&config, |tokens| tokens.last() == Some(&stop)), by_token, "{stop}, {early_stopping:?}");
            }
        }
    }
}
