//! Texts that must have a form.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

/// Says which tokens may come next.
pub trait Constraint: Debug + Send + Sync {
    /// The tokens that may follow `generated`, the tokens behind the prompt so far; `None`: all of them. An empty list counts as `None`.
    fn allowed(&self, generated: &[u32]) -> Option<Vec<u32>>;
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
pub(super) fn only<'a>(scores: &Cow<'a, [f32]>, tokens: &[u32]) -> Cow<'a, [f32]> {
    let mut others = vec![f32::NEG_INFINITY; scores.len()];
    let mut some = false;
    for &token in tokens {
        if let Some((own, &score)) = others.get_mut(token as usize).zip(scores.get(token as usize)) {
            *own = score;
            some = true;
        }
    }
    if some { Cow::Owned(others) } else { scores.clone() }
}
