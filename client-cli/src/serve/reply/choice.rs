//! One text of an answer, as it grows.

use std::sync::Arc;

use petals_client::TokenLogprobs;
use serde_json::{Map, Value, json};

use super::logprobs::Places;
use crate::serve::engine::{Done, Piece};
use crate::serve::tools::{Parser, Part, Reading};

/// One text of an answer: what came of it, and what is to be told of it next.
#[derive(Debug)]
pub(super) struct Choice {
    /// Looks for calls of tools, if there are any.
    reader: Option<(Arc<Reading>, Parser)>,
    /// In the form of its endpoint, if probabilities are wanted.
    places: Option<Places>,
    text: String,
    calls: Vec<Value>,
    /// Set at its end.
    pub(super) done: Option<Done>,
}

/// What is new of a text.
#[derive(Debug, Default)]
pub(super) struct News {
    /// More text.
    pub(super) text: String,
    /// More calls, with their numbers.
    pub(super) calls: Vec<Value>,
    /// More probabilities.
    pub(super) logprobs: Value,
}

impl News {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty() && self.logprobs.is_null()
    }
}

impl Choice {
    pub(super) fn new(reading: Option<Arc<Reading>>, places: Option<Places>) -> Self {
        let reader = reading.map(|reading| {
            let parser = reading.parser();
            (reading, parser)
        });
        Self { reader, places, text: String::new(), calls: Vec::new(), done: None }
    }

    /// What the text begins with, before anything is generated: the prompt, if it is to be told, and how probable it was.
    pub(super) fn begin(&mut self, echo: &str, tokens: &[u32], scores: &[TokenLogprobs]) -> News {
        self.text.push_str(echo);
        let logprobs = self.places.as_mut().map_or(Value::Null, |places| places.prompt(echo, tokens, scores));
        News { text: echo.to_owned(), calls: Vec::new(), logprobs }
    }

    /// Takes some more.
    pub(super) fn grow(&mut self, piece: Piece) -> News {
        let parts = match &mut self.reader {
            Some((_, parser)) => parser.push(&piece.text),
            None => vec![Part::Text(piece.text)],
        };
        let mut news = self.take(parts);
        if let Some(places) = &mut self.places {
            news.logprobs = places.generated(&piece.logprobs);
        }
        news
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, done: Done) -> News {
        self.done = Some(done);
        let parts = self.reader.as_mut().map(|(_, parser)| parser.finish()).unwrap_or_default();
        self.take(parts)
    }

    fn take(&mut self, parts: Vec<Part>) -> News {
        let mut news = News::default();
        for part in parts {
            match (part, &self.reader) {
                (Part::Text(text), _) => news.text += &text,
                (Part::Call { name, arguments }, Some((reading, _))) if reading.parallel || self.calls.is_empty() => {
                    let function = json!({ "name": name, "arguments": arguments });
                    let call = json!({ "id": reading.new_id(), "type": "function", "function": function });
                    let mut told = call.clone();
                    told["index"] = self.calls.len().into();
                    news.calls.push(told);
                    self.calls.push(call);
                }
                (Part::Call { .. }, _) => {}
            }
        }
        self.text += &news.text;
        news
    }

    /// Why it ended, once it has.
    pub(super) fn finish(&self) -> Value {
        match self.done {
            None => Value::Null,
            Some(_) if !self.calls.is_empty() => "tool_calls".into(),
            Some(done) => done.finish.into(),
        }
    }

    /// The whole text of a completion, with what is known of its tokens.
    pub(super) fn completion(self) -> Value {
        let logprobs = self.places.as_ref().map_or(Value::Null, Places::all);
        json!({ "finish_reason": self.finish(), "text": self.text, "logprobs": logprobs })
    }

    /// The whole answer of a chat.
    pub(super) fn message(self) -> Value {
        let logprobs = self.places.as_ref().map_or(Value::Null, Places::all);
        let finish = self.finish();
        let content = if self.text.is_empty() && !self.calls.is_empty() { Value::Null } else { self.text.into() };
        let mut message = Map::new();
        message.insert("role".to_owned(), "assistant".into());
        message.insert("content".to_owned(), content);
        message.insert("refusal".to_owned(), Value::Null);
        if !self.calls.is_empty() {
            message.insert("tool_calls".to_owned(), self.calls.into());
        }
        json!({ "message": message, "logprobs": logprobs, "finish_reason": finish })
    }

    /// How probable the text was, a token on average. A text without tokens is the last choice.
    pub(super) fn quality(&self) -> f64 {
        let done = self.done.filter(|done| done.tokens > 0);
        done.and_then(|done| Some(done.logprob? / done.tokens as f64)).unwrap_or(f64::NEG_INFINITY)
    }
}
