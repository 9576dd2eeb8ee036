//! What makes single tokens more or less probable.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Sampling;

/// Logits after biases and penalties; `generated` are those tokens of `text` that were not given. The presence and frequency penalties are
/// those of OpenAI: `logit - count * frequency - (count > 0) * presence`.
pub(super) fn scores<'a>(logits: &'a [f32], text: &[u32], generated: &[u32], sampling: &Sampling) -> Cow<'a, [f32]> {
    let mut scores = Cow::Borrowed(logits);
    for &(token, bias) in &*sampling.logit_bias {
        if (token as usize) < logits.len()
            && let Some(score) = scores.to_mut().get_mut(token as usize)
        {
            *score += bias;
        }
    }
    if sampling.repetition_penalty != 1.0 {
        scores = Cow::Owned(penalised(&scores, text, sampling.repetition_penalty).into_owned());
    }
    let (presence, frequency) = (sampling.presence_penalty, sampling.frequency_penalty);
    if (presence != 0.0 || frequency != 0.0) && !generated.is_empty() {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for &token in generated {
            *counts.entry(token).or_default() += 1;
        }
        let scores = scores.to_mut();
        for (token, count) in counts {
            if let Some(score) = scores.get_mut(token as usize) {
                *score -= count as f32 * frequency + presence;
            }
        }
    }
    scores
}

/// Logits after the repetition penalty.
pub(crate) fn penalised<'a>(logits: &'a [f32], text: &[u32], penalty: f32) -> Cow<'a, [f32]> {
    if penalty == 1.0 {
        return Cow::Borrowed(logits);
    }
    let mut scores = logits.to_vec();
    for &token in text {
        // From the logit, so that a token counts once however often it is there.
        if let Some((score, &logit)) = scores.get_mut(token as usize).zip(logits.get(token as usize)) {
            *score = if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
    }
    Cow::Owned(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(sampling: &Sampling, generated: &[u32]) -> Vec<f32> {
        scores(&[3.0, -2.0, 1.0], &[&[9, 1], generated].concat(), generated, sampling).into_owned()
    }

    #[test]
    fn tokens_of_the_text_become_less_probable_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(scored(&sampling, &[0, 0, 0]), [1.5, -4.0, 1.0], "the prompt's token 1 as well");
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time() {
        let sampling = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        assert_eq!(scored(&sampling, &[0, 0, 2]), [2.0, -2.0, 0.25]);
        assert_eq!(scored(&sampling, &[]), [3.0, -2.0, 1.0]);
        let negative = Sampling { frequency_penalty: -1.0, ..Sampling::default() };
        assert_eq!(scored(&negative, &[2, 2]), [3.0, -2.0, 3.0]);
    }

    #[test]
    fn biases_are_added_before_the_repetition_penalty() {
        let biased = Sampling { logit_bias: [(1, 100.0), (2, -100.0), (77, 5.0)].into(), ..Sampling::default() };
        assert_eq!(scored(&biased, &[]), [3.0, 98.0, -99.0]);
        let both = Sampling { repetition_penalty: 2.0, ..biased };
        assert_eq!(scored(&both, &[2]), [3.0, 49.0, -198.0]);
    }
}
