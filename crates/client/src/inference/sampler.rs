//! Choosing the next token from logits.

use std::borrow::Cow;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use constraint::{Allowed, Constraint, TokenSet};
pub(crate) use penalty::penalised;
pub(crate) use ranked::Ranked;

mod constraint;
mod penalty;
mod ranked;

/// How tokens are chosen. What each parameter does and their order are those of transformers: the repetition penalty, then
/// temperature, top-k, top-p, min-p. What only OpenAI's interface has stands where vLLM has it: biases come before the repetition
/// penalty, the presence and frequency penalties behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most probable token.
    pub temperature: f32,
    /// Keep only this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep the tokens that are at least this many times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens that the text has already, prompt included, are divided by this where they are positive and multiplied
    /// where they are negative; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that were generated before (the prompt's do not count), however often; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens that were generated before, once for each time; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Which tokens may come at all; all if there is none.
    pub constraint: Option<Allowed>,
    /// Equal seeds choose equally.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Arc::default(),
            constraint: None,
            seed: 0,
        }
    }
}

/// A number that is no sampling parameter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// Negative, NaN or infinite.
    #[error("the temperature {0} must be a number of at least 0")]
    Temperature(f32),
    /// Outside of `(0, 1]`.
    #[error("top-p {0} must be above 0 and at most 1")]
    TopP(f32),
    /// Outside of `[0, 1]`.
    #[error("min-p {0} must be from 0 to 1")]
    MinP(f32),
    /// Not above 0, NaN or infinite.
    #[error("the repetition penalty {0} must be a number above 0")]
    RepetitionPenalty(f32),
    /// NaN or infinite.
    #[error("the {0} {1} must be a finite number")]
    NotFinite(&'static str, f32),
}

/// Draws tokens, one after another. Each sampled token takes one random number.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// Tokens in front of those that were generated.
    prompt: usize,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// [`SamplingError`] for parameters out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = sampling;
        let biases = sampling.logit_bias.iter().map(|&(_, bias)| ("logit bias", bias));
        let penalties =
            [("presence penalty", sampling.presence_penalty), ("frequency penalty", sampling.frequency_penalty)];
        if let Some((name, number)) = biases.chain(penalties).find(|(_, number)| !number.is_finite()) {
            return Err(SamplingError::NotFinite(name, number));
        }
        if !temperature.is_finite() || temperature < 0.0 {
            return Err(SamplingError::Temperature(temperature));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplingError::TopP(top_p));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Err(SamplingError::MinP(min_p));
        }
        if !repetition_penalty.is_finite() || repetition_penalty <= 0.0 {
            return Err(SamplingError::RepetitionPenalty(repetition_penalty));
        }
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, rng, prompt: 0 })
    }

    /// The same sampler, for texts whose first `prompt` tokens were given and not generated.
    #[must_use]
    pub fn behind(self, prompt: usize) -> Self {
        Self { prompt, ..self }
    }

    /// Always takes the most probable token.
    pub fn greedy() -> Self {
        Self { sampling: Sampling::default(), rng: ChaCha8Rng::seed_from_u64(0), prompt: 0 }
    }

    /// The token that continues `text`, whose next token has these `logits`; `None` if there are none. Of equal logits
    /// greedy choice takes the lowest token.
    pub fn choose(&mut self, logits: &[f32], text: &[u32]) -> Option<u32> {
        let scores = self.scores(logits, text);
        if self.sampling.temperature == 0.0 {
            let best = (0..scores.len()).reduce(|best, at| if scores[at] > scores[best] { at } else { best })?;
            return u32::try_from(best).ok();
        }
        let (mut ranked, kept, total) = self.kept(&scores);
        let mut left = self.rng.random::<f64>() * total;
        let mut chosen = None;
        for rank in 0..kept {
            let (token, weight) = ranked.get(rank)?;
            chosen = Some(token);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        chosen
    }

    /// The tokens that may continue `text` with their probabilities, the most probable first. Greedy choice has one.
    pub fn distribution(&self, logits: &[f32], text: &[u32]) -> Vec<(u32, f64)> {
        if self.sampling.temperature == 0.0 {
            return self.clone().choose(logits, text).map(|token| (token, 1.0)).into_iter().collect();
        }
        let (mut ranked, kept, total) = self.kept(&self.scores(logits, text));
        (0..kept).filter_map(|rank| ranked.get(rank)).map(|(token, weight)| (token, weight / total)).collect()
    }

    /// Logits with everything that depends on the text and on single tokens.
    fn scores<'a>(&self, logits: &'a [f32], text: &[u32]) -> Cow<'a, [f32]> {
        let generated = text.get(self.prompt..).unwrap_or_default();
        let scores = penalty::scores(logits, text, generated, &self.sampling);
        match self.sampling.constraint.as_ref().and_then(|constraint| constraint.0.allowed(generated)) {
            Some(tokens) => constraint::only(scores, &tokens),
            None => scores,
        }
    }

    /// The tokens by falling weight, how many of them remain, and the sum of their weights.
    fn kept(&self, scores: &[f32]) -> (Ranked, usize, f64) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let mut ranked = Ranked::new(scores, temperature, top_k);
        let mut total = ranked.total();
        let mut kept = ranked.len();
        if top_p < 1.0 || min_p > 0.0 {
            // The most probable token has weight 1.
            let enough = if top_p < 1.0 { f64::from(top_p) * total } else { f64::INFINITY };
            let (mut before, mut rank) = (0.0, 0);
            while let Some((_, weight)) = ranked.get(rank).filter(|(_, weight)| *weight >= f64::from(min_p)) {
                if before >= enough {
                    break;
                }
                before += weight;
                rank += 1;
            }
            (kept, total) = (rank, before);
        }
        (ranked, kept, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: usize, top_p: f32) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed: 7, ..Sampling::default() }).unwrap()
    }

    fn shares(mut sampler: Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.choose(logits, &[]).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        assert_eq!(sampler(0.0, 0, 1.0).choose(&[0.5, 2.0, 2.0, -1.0], &[]), Some(1));
        assert_eq!(sampler(0.0, 0, 1.0).choose(&[], &[]), None);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits = [1.0f32, 0.0, 2.0];
        let expected: Vec<f64> = logits.iter().map(|&l| f64::from(l / 0.5).exp()).collect();
        let total: f64 = expected.iter().sum();
        for (share, weight) in shares(sampler(0.5, 0, 1.0), &logits, 20_000).iter().zip(expected) {
            assert!((share - weight / total).abs() < 0.015, "{share} for {}", weight / total);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.0f32, 3.0, 2.0, 1.0];
        let few = shares(sampler(1.0, 2, 1.0), &logits, 2000);
        assert!(few[1] > 0.0 && few[2] > 0.0 && few[0] == 0.0 && few[3] == 0.0);
        // Probabilities 0.64, 0.24, 0.09, 0.03: the second is needed to reach 0.7, the third is not.
        let nucleus = shares(sampler(1.0, 0, 0.7), &logits, 2000);
        assert!(nucleus[2] > 0.0 && nucleus[3] == 0.0);
        let one = shares(sampler(1.0, 0, 1e-6), &logits, 100);
        assert!((one[1] - 1.0).abs() < 1e-9, "at least the best one stays");
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable_token() {
        let sampling = Sampling { temperature: 1.0, min_p: 0.1, ..Sampling::default() };
        let logits: Vec<f32> = [1.0f32, 0.5, 0.11, 0.09].iter().map(|p| p.ln()).collect();
        let kept = Sampler::new(sampling).unwrap().distribution(&logits, &[]);
        assert_eq!(kept.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1, 2]);
        assert!((kept[1].1 - 0.5 / 1.61).abs() < 1e-6, "the rest is normalised");
    }

    #[test]
    fn penalties_of_what_was_generated_leave_the_prompt_alone() {
        let sampling = Sampling { presence_penalty: 2.0, ..Sampling::default() };
        let mut greedy = Sampler::new(sampling).unwrap().behind(2);
        assert_eq!(greedy.choose(&[3.0, 2.0], &[0, 0]), Some(0), "only the prompt has it");
        assert_eq!(greedy.choose(&[3.0, 2.0], &[0, 0, 0]), Some(1), "3 - 2 < 2");
    }

    #[derive(Debug)]
    struct Evens;

    impl Constraint for Evens {
        fn allowed(&self, generated: &[u32]) -> Option<Arc<TokenSet>> {
            (generated.len() < 2).then(|| Arc::new([0, 2, 4].into_iter().collect()))
        }
    }

    #[test]
    fn only_what_a_constraint_allows_is_chosen() {
        let constraint = Some(Allowed::new(Arc::new(Evens)));
        let logits = [0.0, 9.0, 1.0, 9.0, 2.0];
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, constraint: constraint.clone(), ..Sampling::default() };
            let mut sampler = Sampler::new(sampling).unwrap().behind(1);
            assert!((0..50).all(|_| sampler.choose(&logits, &[7]).unwrap().is_multiple_of(2)));
            assert!(sampler.distribution(&logits, &[7]).iter().all(|(token, _)| token.is_multiple_of(2)));
            assert!([1, 3].contains(&sampler.choose(&[0.0, 99.0, 1.0, 99.0, 2.0], &[7, 2, 4]).unwrap()));
        }
    }

    #[test]
    fn equal_seeds_draw_equally() {
        let logits: Vec<f32> = (0..50).map(|n| (n % 7) as f32).collect();
        let (mut a, mut b) = (sampler(1.0, 0, 1.0), sampler(1.0, 0, 1.0));
        assert!((0..100).all(|_| a.choose(&logits, &[]) == b.choose(&logits, &[])));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(Sampler::new(Sampling { temperature, top_p, ..Sampling::default() }).is_err());
        }
        for (min_p, repetition_penalty) in [(-0.1, 1.0), (1.1, 1.0), (f32::NAN, 1.0), (0.0, 0.0), (0.0, f32::INFINITY)]
        {
            assert!(Sampler::new(Sampling { min_p, repetition_penalty, ..Sampling::default() }).is_err());
        }
        let bias = Arc::from([(3, f32::NAN)]);
        assert!(Sampler::new(Sampling { logit_bias: bias, ..Sampling::default() }).is_err());
        assert!(Sampler::new(Sampling { frequency_penalty: f32::INFINITY, ..Sampling::default() }).is_err());
    }
}
