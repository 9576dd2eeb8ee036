//! Forms that come from strangers, made ready within bounds.

use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use llguidance::{Matcher, ParserFactory};
use tokio::sync::{Semaphore, oneshot};

use super::vocabulary::factory;
use super::{Form, Walk};
use crate::serve::error::ApiError;
use crate::text::Pieces;

/// Forms that are made ready at a time; others wait.
const AT_A_TIME: usize = 2;
/// Longest time that a form may take, and that one waits for its turn.
const LONGEST: Duration = Duration::from_secs(10);
/// Rules that refer to rules, and schemas to schemas, are followed by calls of functions. A form has [`super::form`]'s bytes at most, so
/// this is enough for the longest chain.
const STACK: usize = 256 << 20;
/// What stands in front of what is wrong with a schema in a grammar.
const SCHEMA: &str = "failed to compile JSON schema: ";
/// Most letters of a reason.
const REASON: usize = 400;

/// Makes forms ready.
#[derive(Debug)]
pub(in crate::serve) struct Grammars {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
}

struct Shared {
    pieces: Arc<Pieces>,
    vocabulary: usize,
    /// Made for the first form: most servers never see one.
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// A form that is ready.
pub(in crate::serve) struct Grammar {
    field: String,
    /// Before the first token.
    matcher: Mutex<Matcher>,
}

impl Grammars {
    /// For a model of `vocabulary` tokens.
    pub(in crate::serve) fn new(pieces: Arc<Pieces>, vocabulary: usize) -> Self {
        let shared = Shared { pieces, vocabulary, factory: OnceLock::new() };
        Self { shared: Arc::new(shared), places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Makes a form ready.
    ///
    /// # Errors
    /// 400, naming the field, if it is wrong, too large or takes too long; 503 if others take too long.
    pub(in crate::serve) async fn compile(&self, form: Form) -> Result<Arc<Grammar>, ApiError> {
        // The model's tokens are made ready once, which takes a few seconds: that is not the first form's fault.
        let shared = self.shared.clone();
        let ready = tokio::task::spawn_blocking(move || shared.factory().map(drop)).await;
        ready.unwrap_or_else(|_| Err(ApiError::internal("forms are not possible with this model's tokens")))?;
        let place = tokio::time::timeout(LONGEST, self.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(ApiError::unavailable("forms of answers of other requests take their time, try again later"));
        };
        let (sender, receiver) = oneshot::channel();
        let (shared, field) = (self.shared.clone(), form.field.clone());
        let work = move || {
            let _ = sender.send(shared.compile(&form));
            // Who gave up waiting does not make room for others.
            drop(place);
        };
        std::thread::Builder::new()
            .name("form".to_owned())
            .stack_size(STACK)
            .spawn(work)
            .map_err(|error| ApiError::unavailable(format!("there is no room for a thread: {error}")))?;
        match tokio::time::timeout(LONGEST, receiver).await {
            Ok(Ok(grammar)) => grammar.map(Arc::new),
            Ok(Err(_)) => Err(ApiError::field(field, "cannot be used: it is too complex")),
            Err(_) => {
                let message = format!("took more than {} s to be made ready: make it simpler", LONGEST.as_secs());
                Err(ApiError::field(field, message))
            }
        }
    }
}

impl Shared {
    fn factory(&self) -> Result<&ParserFactory, ApiError> {
        let factory = self.factory.get_or_init(|| factory(&self.pieces, self.vocabulary)).as_ref();
        factory.map_err(|error| ApiError::internal(format!("forms are not possible: {error}")))
    }

    fn compile(&self, form: &Form) -> Result<Grammar, ApiError> {
        let grammar = form.grammar()?;
        let factory = self.factory()?;
        let wrong = |error: &str| ApiError::field(&form.field, format!("cannot be used: {}", reason(error)));
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(wrong(&error));
        }
        // What no answer can begin with is wrong as well, and what is too much for a step is so from the first one on mostly.
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(Grammar { field: form.field.clone(), matcher: Mutex::new(matcher) }),
            Err(error) => Err(wrong(&error.to_string())),
        }
    }
}

impl Grammar {
    /// The way of one text that ends with one of `stop_tokens`.
    pub(in crate::serve) fn walk(&self, stop_tokens: &[u32]) -> Walk {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Walk::new(matcher, stop_tokens)
    }

    /// Why a text could not go on in this form.
    pub(in crate::serve) fn failed(&self, error: &str) -> ApiError {
        ApiError::field(&self.field, format!("became too complex for this text: {}", reason(error)))
    }
}

impl Debug for Shared {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl Debug for Grammar {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("field", &self.field).finish_non_exhaustive()
    }
}

/// What llguidance says, without what it says of itself.
fn reason(error: &str) -> String {
    let end = ["\n<non-verbose/>", "\n<backtrace>", "\n<state>"].iter().filter_map(|mark| error.find(mark)).min();
    let error = match error.get(..end.unwrap_or(error.len())).unwrap_or(error).trim() {
        "NoExtensionBias" => "no answer of this model can be like that",
        other => other,
    };
    // Behind a schema in a grammar stand rules, which are this server's own if it is that of a tool.
    let inner = error.find(SCHEMA).and_then(|at| error.get(at + SCHEMA.len()..)?.lines().next());
    let error = inner.unwrap_or(error);
    match error.char_indices().nth(REASON) {
        Some((cut, _)) => format!("{}…", error.get(..cut).unwrap_or_default()),
        None => error.to_owned(),
    }
}
