//! How probable tokens were.

use super::sampler::Ranked;

/// How probable the model held a token, and the tokens that it held most probable in its place: by the model's own distribution, before
/// temperature, penalties and everything else that chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens with theirs, falling. The token itself may be among them.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of `token` at a place with these `logits`, and of the `top` most probable ones.
    pub(crate) fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // A vocabulary's worth of small numbers is added, so not in single precision.
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
        let logarithm = |logit: f32| (f64::from(logit - highest) - sum.ln()) as f32;
        let mut ranked = (top > 0).then(|| Ranked::new(logits, 1.0, top));
        let alternative = |rank| {
            let (other, _) = ranked.as_mut()?.get(rank)?;
            Some((other, logarithm(*logits.get(other as usize)?)))
        };
        let top = (0..top).map_while(alternative).collect();
        let logprob = logits.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| logarithm(logit));
        Self { token, logprob, top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_those_of_the_softmax() {
        let logits: Vec<f32> = [0.1f32, 0.6, 0.3].iter().map(|p| p.ln() + 7.0).collect();
        let found = TokenLogprobs::of(&logits, 0, 2);
        assert!((found.logprob.exp() - 0.1).abs() < 1e-6);
        let top: Vec<u32> = found.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, [1, 2]);
        assert!((found.top[0].1.exp() - 0.6).abs() < 1e-6 && (found.top[1].1.exp() - 0.3).abs() < 1e-6);
        assert!(TokenLogprobs::of(&logits, 1, 0).top.is_empty());
        assert_eq!(TokenLogprobs::of(&logits, 1, 9).top.len(), 3);
        // The chosen token's figure is the same number in both places.
        let own = TokenLogprobs::of(&logits, 1, 1);
        assert_eq!(own.logprob, own.top[0].1);
    }
}
