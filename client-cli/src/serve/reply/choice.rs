//! One text of an answer, as it grows.

use std::sync::Arc;

use petals_client::TokenLogprobs;
use serde_json::Value;

use super::logprobs::Places;
use crate::serve::engine::{Done, Piece};
use crate::serve::tools::{Parser, Part, Reading};

/// Something that was said in an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) enum Said {
    /// Text for people.
    Text(String),
    /// A call of a tool.
    Call(Call),
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Call {
    /// Its number among the calls of the answer.
    pub(in crate::serve) number: usize,
    /// What its result will name.
    pub(in crate::serve) id: String,
    /// Which tool.
    pub(in crate::serve) name: String,
    /// JSON.
    pub(in crate::serve) arguments: String,
}

/// One text of an answer: what came of it, and what is to be told of it next.
#[derive(Debug)]
pub(in crate::serve) struct Choice {
    /// Looks for calls of tools, if there are any.
    reader: Option<(Arc<Reading>, Parser)>,
    /// In the form of its endpoint, if probabilities are wanted.
    places: Option<Places>,
    said: Vec<Said>,
    calls: usize,
    /// Set at its end.
    done: Option<Done>,
}

/// What is new of a text.
#[derive(Debug, Default)]
pub(in crate::serve) struct News {
    /// More text and more calls, in their order.
    pub(in crate::serve) said: Vec<Said>,
    /// More probabilities.
    pub(in crate::serve) logprobs: Value,
}

impl News {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty() && self.logprobs.is_null()
    }
}

impl Choice {
    pub(in crate::serve) fn new(reading: Option<Arc<Reading>>, places: Option<Places>) -> Self {
        let reader = reading.map(|reading| {
            let parser = reading.parser();
            (reading, parser)
        });
        Self { reader, places, said: Vec::new(), calls: 0, done: None }
    }

    /// What the text begins with, before anything is generated: the prompt, if it is to be told, and how probable it was.
    pub(super) fn begin(&mut self, echo: &str, tokens: &[u32], scores: &[TokenLogprobs]) -> News {
        let logprobs = self.places.as_mut().map_or(Value::Null, |places| places.prompt(echo, tokens, scores));
        News { logprobs, ..self.take(vec![Part::Text(echo.to_owned())]) }
    }

    /// Takes some more.
    pub(in crate::serve) fn grow(&mut self, piece: Piece) -> News {
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
    pub(in crate::serve) fn end(&mut self, done: Done) -> News {
        self.done = Some(done);
        let parts = self.reader.as_mut().map(|(_, parser)| parser.finish()).unwrap_or_default();
        self.take(parts)
    }

    fn take(&mut self, parts: Vec<Part>) -> News {
        let mut new = Vec::new();
        for part in parts {
            match (part, &self.reader) {
                (Part::Text(text), _) => push(&mut new, Said::Text(text)),
                (Part::Call { name, arguments }, Some((reading, _))) if reading.parallel || self.calls == 0 => {
                    new.push(Said::Call(Call { number: self.calls, id: reading.new_id(), name, arguments }));
                    self.calls += 1;
                }
                (Part::Call { .. }, _) => {}
            }
        }
        new.iter().cloned().for_each(|said| push(&mut self.said, said));
        News { said: new, logprobs: Value::Null }
    }

    /// Everything that was said.
    pub(in crate::serve) fn said(&self) -> &[Said] {
        &self.said
    }

    /// Why it ended, once it has: `stop`, `length`, or `tool_calls` if a tool was called.
    pub(in crate::serve) fn finish(&self) -> Option<&'static str> {
        self.done.as_ref().map(|done| if self.calls > 0 { "tool_calls" } else { done.finish })
    }

    /// What its end was like, once it has ended.
    pub(in crate::serve) fn done(&self) -> Option<&Done> {
        self.done.as_ref()
    }

    /// All probabilities, in the form of its endpoint.
    pub(in crate::serve) fn logprobs(&self) -> Value {
        self.places.as_ref().map_or(Value::Null, Places::all)
    }

    /// How probable the text was, a token on average. A text without tokens is the last choice.
    pub(super) fn quality(&self) -> f64 {
        let done = self.done.as_ref().filter(|done| done.tokens > 0);
        done.and_then(|done| Some(done.logprob? / done.tokens as f64)).unwrap_or(f64::NEG_INFINITY)
    }
}

/// Adds something that was said; texts that follow each other are one.
fn push(all: &mut Vec<Said>, said: Said) {
    match (all.last_mut(), said) {
        (_, Said::Text(text)) if text.is_empty() => {}
        (Some(Said::Text(before)), Said::Text(text)) => before.push_str(&text),
        (_, said) => all.push(said),
    }
}
