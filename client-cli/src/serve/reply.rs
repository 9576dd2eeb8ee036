//! Texts as OpenAI's answers: whole, or as server-sent events.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::engine::{Done, Progress};
use super::error::ApiError;

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

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply {
    kind: Kind,
    model: String,
    id: String,
    created: u64,
    texts: usize,
    prompt_tokens: usize,
    include_usage: bool,
    receiver: mpsc::Receiver<(usize, Progress)>,
    /// Of the texts that are complete.
    done: Vec<Done>,
    /// Events that are ready to be sent.
    ready: String,
    /// Whether the last event is among them, or sent.
    over: bool,
}

impl Reply {
    /// An answer of `texts` texts behind `prompt_tokens` tokens of prompts.
    pub(super) fn new(
        kind: Kind,
        model: String,
        texts: usize,
        prompt_tokens: usize,
        receiver: mpsc::Receiver<(usize, Progress)>,
    ) -> Self {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let (done, ready, over) = (Vec::new(), String::new(), false);
        Self { kind, model, id, created, texts, prompt_tokens, include_usage: false, receiver, done, ready, over }
    }

    /// The whole answer, once all of its texts are complete.
    ///
    /// # Errors
    /// That of the first text that fails.
    pub(super) async fn whole(mut self) -> Result<Response, ApiError> {
        let mut texts = vec![String::new(); self.texts];
        let mut finishes = vec![Value::Null; self.texts];
        while self.done.len() < self.texts {
            match self.receiver.recv().await {
                Some((number, Progress::Grew(piece))) => texts[number] += &piece,
                Some((number, Progress::Done(done))) => {
                    finishes[number] = done.finish.into();
                    self.done.push(done);
                }
                Some((_, Progress::Failed(error))) => return Err(error),
                None => return Err(ended()),
            }
        }
        let choices = texts.into_iter().zip(finishes).enumerate().map(|(index, (text, finish))| match self.kind {
            Kind::Completion => json!({ "index": index, "text": text, "logprobs": null, "finish_reason": finish }),
            Kind::Chat => json!({
                "index": index, "message": { "role": "assistant", "content": text, "refusal": null }, "logprobs": null,
                "finish_reason": finish,
            }),
        });
        let mut body = self.envelope(choices.collect(), false);
        body["usage"] = self.usage();
        Ok(([(CONTENT_TYPE, "application/json")], body.to_string()).into_response())
    }

    /// The answer as events, in pieces as they come.
    ///
    /// # Errors
    /// What fails before the first token.
    pub(super) async fn streamed(mut self, include_usage: bool) -> Result<Response, ApiError> {
        self.include_usage = include_usage;
        let first = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
        if self.kind == Kind::Chat {
            for number in 0..self.texts {
                self.choice(number, json!({ "delta": { "role": "assistant", "content": "" } }), Value::Null);
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
        match progress {
            Progress::Grew(text) => match self.kind {
                Kind::Completion => self.choice(number, json!({ "text": text }), Value::Null),
                Kind::Chat => self.choice(number, json!({ "delta": { "content": text } }), Value::Null),
            },
            Progress::Done(done) => {
                let rest = if self.kind == Kind::Chat { json!({ "delta": {} }) } else { json!({ "text": "" }) };
                self.choice(number, rest, done.finish.into());
                self.done.push(done);
                if self.done.len() == self.texts {
                    if self.include_usage {
                        let mut event = self.envelope(Vec::new(), true);
                        event["usage"] = self.usage();
                        self.event(&event);
                    }
                    self.end();
                }
            }
            Progress::Failed(error) => self.fail(&error),
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
        choice["logprobs"] = Value::Null;
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
        let object = match (self.kind, streamed) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices })
    }

    fn usage(&self) -> Value {
        let new: usize = self.done.iter().map(|done| done.tokens).sum();
        let reused: usize = self.done.iter().map(|done| done.reused).sum();
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": self.prompt_tokens + new,
            "prompt_tokens_details": { "cached_tokens": reused },
        })
    }
}

fn ended() -> ApiError {
    ApiError::internal("the text ended unexpectedly")
}
