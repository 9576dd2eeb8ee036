//! Texts as answers: whole, or as server-sent events, in the form of the interface that was asked.
//!
//! | file | subject |
//! |---|---|
//! | `choice` | one text of an answer |
//! | `logprobs` | how probable its tokens were |
//! | `chunks` | the form of completions and chats |

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::stream;
use petals_client::TokenLogprobs;
use serde_json::Value;
use tokio::sync::mpsc;

use super::engine::Progress;
use super::error::ApiError;
use super::tools::Reading;
use crate::text::Pieces;
pub(super) use choice::{Call, Choice, News, Said};
pub(super) use chunks::Chunks;
use logprobs::Places;

mod choice;
mod chunks;
mod logprobs;

/// How long the status of a streamed answer waits for the first token, so that what fails at once has the right status.
const PATIENCE: Duration = Duration::from_secs(2);
/// A silent stream gets a sign of life this often, so that proxies do not take it for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Whether a text or a conversation is continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A text.
    Completion,
    /// A conversation.
    Chat,
}

/// What an answer is to be like.
#[derive(Debug)]
pub(super) struct Shape {
    /// What is continued.
    pub(super) kind: Kind,
    /// The prompts, for answers that begin with them: their texts and tokens.
    pub(super) echo: Option<Vec<(String, Arc<Vec<u32>>)>>,
    /// Number of prompts, and their tokens in all.
    pub(super) prompts: usize,
    /// Tokens of the prompts.
    pub(super) prompt_tokens: usize,
    /// Texts that are generated for each prompt.
    pub(super) each: usize,
    /// Those that are shown, the most probable ones.
    pub(super) shown: usize,
    /// Whether probabilities are told.
    pub(super) logprobs: bool,
    /// How calls of tools are read out of the texts.
    pub(super) reading: Option<Arc<Reading>>,
    /// What tokens stand for.
    pub(super) pieces: Arc<Pieces>,
}

/// What an answer took, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of the prompts.
    pub(super) prompt: usize,
    /// Those of them that did not have to be computed.
    pub(super) reused: usize,
    /// Generated.
    pub(super) new: usize,
}

/// The form in which an interface tells an answer. A stream is `begin` for each text, then `grow` and `finish`, and one `end` or `fail`.
pub(super) trait Face: Debug + Send + 'static {
    /// A text is about to come.
    fn begin(&mut self, number: usize, choice: &Choice, events: &mut Events);
    /// A text grew.
    fn grow(&mut self, number: usize, news: News, events: &mut Events);
    /// A text is complete.
    fn finish(&mut self, number: usize, choice: &Choice, events: &mut Events);
    /// All of them are.
    fn end(&mut self, usage: Usage, events: &mut Events);
    /// There will be no more.
    fn fail(&mut self, error: &ApiError, events: &mut Events);
    /// Nothing happened for a while.
    fn idle(&mut self, events: &mut Events);
    /// The whole answer of the texts that are to be shown.
    fn whole(self, choices: Vec<Choice>, usage: Usage) -> Value;
}

/// Server-sent events that are ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Events(String);

impl Events {
    /// Adds an event without a name.
    pub(super) fn data(&mut self, data: &Value) {
        self.raw(&format!("data: {data}\n\n"));
    }

    /// Adds an event that bears the name that its `type` has.
    pub(super) fn typed(&mut self, data: &Value) {
        let name = data.get("type").and_then(Value::as_str).unwrap_or("message");
        self.raw(&format!("event: {name}\ndata: {data}\n\n"));
    }

    /// The data of all events so far, which are gone then.
    #[cfg(test)]
    pub(super) fn taken(&mut self) -> Vec<Value> {
        let events = std::mem::take(&mut self.0);
        let data = |event: &str| serde_json::from_str(event.split_once("data: ")?.1).ok();
        events.split_terminator("\n\n").filter_map(data).collect()
    }

    /// Adds what is an event already.
    pub(super) fn raw(&mut self, event: &str) {
        self.0.push_str(event);
    }
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply<F> {
    face: F,
    shape: Shape,
    receiver: mpsc::Receiver<(usize, Progress)>,
    choices: Vec<Choice>,
    /// Texts that are complete.
    done: usize,
    /// Events that are ready to be sent.
    ready: Events,
    /// Whether the last event is among them, or sent.
    over: bool,
}

impl<F: Face> Reply<F> {
    /// An answer of a shape, in the form of an interface.
    pub(super) fn new(face: F, shape: Shape, receiver: mpsc::Receiver<(usize, Progress)>) -> Self {
        let choice = |_| {
            let places = shape.logprobs.then(|| match shape.kind {
                Kind::Chat => Places::chat(shape.pieces.clone()),
                Kind::Completion => Places::completion(shape.pieces.clone()),
            });
            Choice::new(shape.reading.clone(), places)
        };
        let choices = (0..shape.prompts * shape.each).map(choice).collect();
        let mut reply = Self { face, shape, receiver, choices, done: 0, ready: Events::default(), over: false };
        // With probabilities of the prompt its text comes when they do.
        if reply.shape.echo.is_some() && !reply.shape.logprobs {
            (0..reply.choices.len()).for_each(|number| drop(reply.begin(number, &[])));
        }
        reply
    }

    /// The answer, as a whole or in pieces as they come.
    ///
    /// # Errors
    /// That of the first text that fails; in pieces, what fails before the first token.
    pub(super) async fn tell(self, stream: bool) -> Result<Response, ApiError> {
        if stream { self.streamed().await } else { self.whole().await }
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        while self.done < self.choices.len() {
            let (number, progress) = self.receiver.recv().await.ok_or_else(ended)?;
            self.news(number, progress)?;
        }
        let usage = self.usage();
        let mut shown = Vec::new();
        let mut choices = std::mem::take(&mut self.choices).into_iter();
        for _ in 0..self.shape.prompts {
            let mut group: Vec<Choice> = choices.by_ref().take(self.shape.each).collect();
            if self.shape.shown < self.shape.each {
                // The sort is stable: of equals the first ones are shown.
                group.sort_by(|a, b| b.quality().total_cmp(&a.quality()));
            }
            shown.extend(group.into_iter().take(self.shape.shown));
        }
        let body = self.face.whole(shown, usage);
        Ok(([(CONTENT_TYPE, "application/json")], body.to_string()).into_response())
    }

    /// The beginning of a text that begins with its prompt.
    fn begin(&mut self, number: usize, scores: &[TokenLogprobs]) -> News {
        let prompt = self.shape.echo.as_ref().and_then(|echo| echo.get(number / self.shape.each.max(1)));
        match (prompt, self.choices.get_mut(number)) {
            (Some((text, tokens)), Some(choice)) => choice.begin(text, tokens, scores),
            _ => News::default(),
        }
    }

    /// What is new of a text.
    fn news(&mut self, number: usize, progress: Progress) -> Result<News, ApiError> {
        if let Progress::Prompt(scores) = progress {
            return Ok(self.begin(number, &scores));
        }
        let choice = self.choices.get_mut(number).ok_or_else(ended)?;
        match progress {
            Progress::Grew(piece) => Ok(choice.grow(piece)),
            Progress::Done(done) => {
                self.done += 1;
                Ok(choice.end(done))
            }
            Progress::Prompt(_) => Ok(News::default()),
            Progress::Failed(error) => Err(error),
        }
    }

    async fn streamed(mut self) -> Result<Response, ApiError> {
        let first = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
        for (number, choice) in self.choices.iter().enumerate() {
            self.face.begin(number, choice, &mut self.ready);
        }
        match first {
            Ok(Some((_, Progress::Failed(error)))) => return Err(error),
            Ok(Some((number, progress))) => self.take(number, progress),
            Ok(None) => return Err(ended()),
            Err(_) => {}
        }
        let events = stream::unfold(self, |mut reply| async move {
            let events = reply.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(events)), reply))
        });
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            // nginx would collect the events otherwise.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        Ok((headers, Body::from_stream(events)).into_response())
    }

    /// The next events; nothing behind the last one.
    async fn next(&mut self) -> Option<String> {
        while self.ready.0.is_empty() {
            if self.over {
                return None;
            }
            match tokio::time::timeout(SIGN_OF_LIFE, self.receiver.recv()).await {
                Ok(Some((number, progress))) => self.take(number, progress),
                Ok(None) => self.fail(&ended()),
                Err(_) => self.face.idle(&mut self.ready),
            }
        }
        Some(std::mem::take(&mut self.ready.0))
    }

    fn take(&mut self, number: usize, progress: Progress) {
        let news = match self.news(number, progress) {
            Ok(news) => news,
            Err(error) => return self.fail(&error),
        };
        if !news.is_empty() {
            self.face.grow(number, news, &mut self.ready);
        }
        let Some(choice) = self.choices.get(number).filter(|choice| choice.done().is_some()) else { return };
        self.face.finish(number, choice, &mut self.ready);
        if self.done == self.choices.len() {
            let usage = self.usage();
            self.face.end(usage, &mut self.ready);
            self.close();
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.face.fail(error, &mut self.ready);
        self.close();
    }

    fn close(&mut self) {
        self.over = true;
        // What else is under way ends.
        self.receiver.close();
    }

    fn usage(&self) -> Usage {
        let done = || self.choices.iter().filter_map(Choice::done);
        let (new, reused) = (done().map(|done| done.tokens).sum(), done().map(|done| done.reused).sum());
        Usage { prompt: self.shape.prompt_tokens, reused, new }
    }
}

/// A new identifier.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn ended() -> ApiError {
    ApiError::internal("the text ended unexpectedly")
}
