//! Texts as OpenAI's answers: whole, or as server-sent events.
//!
//! | file | subject |
//! |---|---|
//! | `choice` | one text of an answer |
//! | `logprobs` | how probable its tokens were |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::stream;
use petals_client::TokenLogprobs;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::engine::Progress;
use super::error::ApiError;
use super::tools::Reading;
use crate::text::Pieces;
use choice::{Choice, News};
use logprobs::Places;

mod choice;
mod logprobs;

/// How long the status of a streamed answer waits for the first token, so that what fails at once has the right status.
const PATIENCE: Duration = Duration::from_secs(2);
/// A silent stream gets a comment this often, so that proxies do not take it for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Which endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// What an answer is to be like.
#[derive(Debug)]
pub(super) struct Shape {
    /// Which endpoint answers.
    pub(super) kind: Kind,
    /// The model's name.
    pub(super) model: String,
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

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply {
    shape: Shape,
    id: String,
    created: u64,
    include_usage: bool,
    receiver: mpsc::Receiver<(usize, Progress)>,
    choices: Vec<Choice>,
    /// Texts that are complete.
    done: usize,
    /// Events that are ready to be sent.
    ready: String,
    /// Whether the last event is among them, or sent.
    over: bool,
}

impl Reply {
    /// An answer of a shape.
    pub(super) fn new(shape: Shape, receiver: mpsc::Receiver<(usize, Progress)>) -> Self {
        let prefix = if shape.kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let choice = |_| {
            let places = shape.logprobs.then(|| match shape.kind {
                Kind::Chat => Places::chat(shape.pieces.clone()),
                Kind::Completion => Places::completion(shape.pieces.clone()),
            });
            Choice::new(shape.reading.clone(), places)
        };
        let choices = (0..shape.prompts * shape.each).map(choice).collect();
        let (done, ready, over) = (0, String::new(), false);
        let mut reply = Self { shape, id, created, include_usage: false, receiver, choices, done, ready, over };
        // With probabilities of the prompt its text comes when they do.
        if reply.shape.echo.is_some() && !reply.shape.logprobs {
            (0..reply.choices.len()).for_each(|number| drop(reply.begin(number, &[])));
        }
        reply
    }

    /// The whole answer, once all of its texts are complete.
    ///
    /// # Errors
    /// That of the first text that fails.
    pub(super) async fn whole(mut self) -> Result<Response, ApiError> {
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
        let choices = shown.into_iter().enumerate().map(|(index, choice)| {
            let mut choice = match self.shape.kind {
                Kind::Completion => choice.completion(),
                Kind::Chat => choice.message(),
            };
            choice["index"] = index.into();
            choice
        });
        let mut body = self.envelope(choices.collect(), false);
        body["usage"] = usage;
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

    /// The answer as events, in pieces as they come.
    ///
    /// # Errors
    /// What fails before the first token.
    pub(super) async fn streamed(mut self, include_usage: bool) -> Result<Response, ApiError> {
        self.include_usage = include_usage;
        let first = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
        for number in 0..self.choices.len() {
            if self.shape.kind == Kind::Chat {
                self.choice(number, json!({ "delta": { "role": "assistant", "content": "" } }), Value::Null);
            } else if let (Some(echo), false) = (&self.shape.echo, self.shape.logprobs) {
                let text = echo.get(number / self.shape.each.max(1)).map(|(text, _)| text.clone());
                self.choice(number, json!({ "text": text.unwrap_or_default() }), Value::Null);
            }
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
        while self.ready.is_empty() {
            if self.over {
                return None;
            }
            match tokio::time::timeout(SIGN_OF_LIFE, self.receiver.recv()).await {
                Ok(Some((number, progress))) => self.take(number, progress),
                Ok(None) => self.fail(&ended()),
                Err(_) => self.ready.push_str(": still at it\n\n"),
            }
        }
        Some(std::mem::take(&mut self.ready))
    }

    fn take(&mut self, number: usize, progress: Progress) {
        let news = match self.news(number, progress) {
            Ok(news) => news,
            Err(error) => return self.fail(&error),
        };
        let finish = self.choices.get(number).map_or(Value::Null, Choice::finish);
        if !news.is_empty() {
            let News { text, calls, logprobs } = news;
            let mut rest = match self.shape.kind {
                Kind::Completion => json!({ "text": text }),
                Kind::Chat if calls.is_empty() => json!({ "delta": { "content": text } }),
                Kind::Chat if text.is_empty() => json!({ "delta": { "tool_calls": calls } }),
                Kind::Chat => json!({ "delta": { "content": text, "tool_calls": calls } }),
            };
            rest["logprobs"] = logprobs;
            self.choice(number, rest, Value::Null);
        }
        if finish.is_null() {
            return;
        }
        let rest = if self.shape.kind == Kind::Chat { json!({ "delta": {} }) } else { json!({ "text": "" }) };
        self.choice(number, rest, finish);
        if self.done == self.choices.len() {
            if self.include_usage {
                let mut event = self.envelope(Vec::new(), true);
                event["usage"] = self.usage();
                self.event(&event);
            }
            self.end();
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.event(&error.json());
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_str("data: [DONE]\n\n");
        self.over = true;
        // What else is under way ends.
        self.receiver.close();
    }

    fn choice(&mut self, number: usize, mut choice: Value, finish: Value) {
        choice["index"] = number.into();
        // Null, unless there are any.
        if choice.get("logprobs").is_none() {
            choice["logprobs"] = Value::Null;
        }
        choice["finish_reason"] = finish;
        let mut event = self.envelope(vec![choice], true);
        if self.include_usage {
            event["usage"] = Value::Null;
        }
        self.event(&event);
    }

    fn event(&mut self, event: &Value) {
        self.ready.push_str(&format!("data: {event}\n\n"));
    }

    fn envelope(&self, choices: Vec<Value>, streamed: bool) -> Value {
        let object = match (self.shape.kind, streamed) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.shape.model, "choices": choices })
    }

    fn usage(&self) -> Value {
        let done = || self.choices.iter().filter_map(|choice| choice.done);
        let (new, reused) =
            (done().map(|done| done.tokens).sum::<usize>(), done().map(|done| done.reused).sum::<usize>());
        let prompt = self.shape.prompt_tokens;
        json!({
            "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
            "prompt_tokens_details": { "cached_tokens": reused },
        })
    }
}

fn ended() -> ApiError {
    ApiError::internal("the text ended unexpectedly")
}
