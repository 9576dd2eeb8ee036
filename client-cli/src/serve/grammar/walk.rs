//! One text on its way through its form.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use petals_client::{Constraint, TokenSet};

/// Places whose tokens are remembered: those of foreseen tokens are asked for by who foresees them and by who checks them.
const REMEMBERED: usize = 32;

/// One text on its way through its form: which tokens may come next, and where it ends.
pub(in crate::serve) struct Walk {
    /// They may come where the form is complete.
    stop_tokens: Vec<u32>,
    state: Mutex<State>,
}

struct State {
    matcher: Matcher,
    /// The matcher before the first token.
    fresh: Matcher,
    /// The tokens that the matcher has taken.
    taken: Vec<u32>,
    /// What may come at some of the places up to here.
    known: VecDeque<(usize, Arc<TokenSet>)>,
    /// Why the matcher gave up. The text cannot go on then.
    failure: Option<String>,
}

impl Walk {
    pub(super) fn new(matcher: Matcher, stop_tokens: &[u32]) -> Self {
        let (fresh, matcher) = (matcher.clone(), matcher);
        let state = State { matcher, fresh, taken: Vec::new(), known: VecDeque::new(), failure: None };
        Self { stop_tokens: stop_tokens.to_vec(), state: Mutex::new(state) }
    }

    /// After how many of these tokens the form was complete, and nothing could follow.
    pub(in crate::serve) fn end(&self, generated: &[u32]) -> Option<usize> {
        let mut state = self.lock();
        let all = match state.go(generated) {
            Ok(all) => all,
            Err(error) => {
                state.failure.get_or_insert(error);
                return None;
            }
        };
        let place = state.taken.len();
        // Where nothing but the end may come, and no token ends this text, the next one is any.
        let beyond = !all && generated.get(place).is_some_and(|token| !self.stop_tokens.contains(token));
        (state.failure.is_none() && (beyond || state.matcher.is_stopped())).then_some(place)
    }

    /// Why the text cannot go on, if it cannot.
    pub(in crate::serve) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves to where these tokens lead, or as far as the form lets them come. Returns whether it let all of them.
    fn go(&mut self, generated: &[u32]) -> Result<bool, String> {
        let common = self.taken.iter().zip(generated).take_while(|(ours, theirs)| ours == theirs).count();
        let before = self.taken.len();
        if common < before {
            self.taken.truncate(common);
            self.known.retain(|(place, _)| *place <= common);
            // Grammars with limits of tokens know no way back.
            if self.matcher.rollback(before - common).is_err() {
                self.matcher = self.fresh.clone();
                self.taken.clear();
            }
        }
        let new = generated.get(self.taken.len()..).unwrap_or_default();
        if !new.is_empty() {
            let count = self.matcher.try_consume_tokens(new).map_err(|error| error.to_string())?;
            self.taken.extend(new.iter().take(count));
        }
        Ok(self.taken.len() == generated.len())
    }

    fn allowed(&mut self, generated: &[u32], stop_tokens: &[u32]) -> Result<Option<Arc<TokenSet>>, String> {
        if !self.go(generated)? {
            // Nothing of what comes behind tokens that the form does not have is kept.
            return Ok(None);
        }
        let place = self.taken.len();
        if let Some((_, known)) = self.known.iter().find(|(known, _)| *known == place) {
            return Ok(Some(known.clone()));
        }
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        // The last one stands for all that end a text.
        let end = u32::try_from(mask.len().saturating_sub(1)).map_err(|error| error.to_string())?;
        let mut set = TokenSet::new(mask.as_slice().to_vec());
        if set.contains(end) {
            set.remove(end);
            stop_tokens.iter().for_each(|&token| set.insert(token));
        }
        let set = Arc::new(set);
        if self.known.len() == REMEMBERED {
            self.known.pop_front();
        }
        self.known.push_back((place, set.clone()));
        Ok(Some(set))
    }
}

impl Constraint for Walk {
    fn allowed(&self, generated: &[u32]) -> Option<Arc<TokenSet>> {
        let mut state = self.lock();
        if state.failure.is_some() {
            return None;
        }
        state.allowed(generated, &self.stop_tokens).unwrap_or_else(|error| {
            state.failure = Some(error);
            None
        })
    }
}

impl Debug for Walk {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").field("taken", &self.lock().taken.len()).finish_non_exhaustive()
    }
}
