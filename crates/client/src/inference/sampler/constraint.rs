//! Texts that must have a form.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

/// Tokens of a word of [`TokenSet`].
const WORD: usize = u32::BITS as usize;

/// Some tokens, a bit for each: the lowest bit of the first word stands for token 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenSet(Vec<u32>);

impl TokenSet {
    /// Of its words. Tokens behind the last word are not in it.
    pub fn new(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: u32) -> bool {
        let word = self.0.get(token as usize / WORD);
        word.is_some_and(|word| word >> (token as usize % WORD) & 1 == 1)
    }

    /// Adds a token.
    pub fn insert(&mut self, token: u32) {
        let at = token as usize / WORD;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        if let Some(word) = self.0.get_mut(at) {
            *word |= 1 << (token as usize % WORD);
        }
    }

    /// Takes a token out.
    pub fn remove(&mut self, token: u32) {
        if let Some(word) = self.0.get_mut(token as usize / WORD) {
            *word &= !(1 << (token as usize % WORD));
        }
    }
}

impl FromIterator<u32> for TokenSet {
    fn from_iter<I: IntoIterator<Item = u32>>(tokens: I) -> Self {
        let mut set = Self::default();
        tokens.into_iter().for_each(|token| set.insert(token));
        set
    }
}

/// Says which tokens may come next.
pub trait Constraint: Debug + Send + Sync {
    /// The tokens that may follow `generated`, the tokens behind the prompt so far; `None`: all of them. A set without any token of the
    /// model counts as `None`. It is asked again for a place whose tokens were foreseen and were not the ones.
    fn allowed(&self, generated: &[u32]) -> Option<Arc<TokenSet>>;
}

/// A constraint that several samplers share.
#[derive(Debug, Clone)]
pub struct Allowed(pub(super) Arc<dyn Constraint>);

impl Allowed {
    /// By a constraint.
    pub fn new(constraint: Arc<dyn Constraint>) -> Self {
        Self(constraint)
    }
}

impl PartialEq for Allowed {
    /// Whether it is the same one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The scores of these tokens; all others cannot be chosen.
pub(super) fn only<'a>(scores: Cow<'a, [f32]>, tokens: &TokenSet) -> Cow<'a, [f32]> {
    let mut others = vec![f32::NEG_INFINITY; scores.len()];
    let mut some = false;
    for ((own, scores), &word) in others.chunks_mut(WORD).zip(scores.chunks(WORD)).zip(&tokens.0) {
        let mut left = word;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some((own, &score)) = own.get_mut(at).zip(scores.get(at)) {
                *own = score;
                some = true;
            }
        }
    }
    if some { Cow::Owned(others) } else { scores }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let mut set: TokenSet = [0, 31, 32, 70].into_iter().collect();
        assert!([0, 31, 32, 70].into_iter().all(|token| set.contains(token)));
        assert!(![1, 30, 33, 69, 71, 96, u32::MAX].into_iter().any(|token| set.contains(token)));
        set.remove(32);
        set.remove(1000);
        assert!(!set.contains(32) && set.contains(31));
        assert_eq!(TokenSet::new(vec![0b101]), [0, 2].into_iter().collect());
    }

    #[test]
    fn scores_of_other_tokens_are_gone_and_a_set_of_none_leaves_all() {
        let scores: Vec<f32> = (0..40).map(|score| score as f32).collect();
        let kept = only(Cow::Borrowed(&scores), &[3, 39, 1000].into_iter().collect());
        assert_eq!((kept[3], kept[39]), (3.0, 39.0));
        assert_eq!(kept.iter().filter(|score| score.is_finite()).count(), 2);
        assert_eq!(*only(Cow::Borrowed(&scores), &[1000].into_iter().collect()), *scores);
    }
}
