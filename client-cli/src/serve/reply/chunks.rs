//! The form of `/v1/completions` and `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::choice::{Call, Choice, News, Said};
use super::{Events, Face, Kind, Usage, new_id, now};
use crate::serve::error::ApiError;

/// Objects with `choices`, in pieces as chunks.
#[derive(Debug)]
pub(in crate::serve) struct Chunks {
    kind: Kind,
    model: String,
    id: String,
    created: u64,
    include_usage: bool,
}

impl Chunks {
    /// For an answer of a model; `include_usage`: a stream ends with its counts.
    pub(in crate::serve) fn new(kind: Kind, model: String, include_usage: bool) -> Self {
        let id = new_id(if kind == Kind::Chat { "chatcmpl-" } else { "cmpl-" });
        Self { kind, model, id, created: now(), include_usage }
    }

    fn choice(&self, number: usize, mut choice: Value, finish: Value, events: &mut Events) {
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
        events.data(&event);
    }

    fn envelope(&self, choices: Vec<Value>, streamed: bool) -> Value {
        let object = match (self.kind, streamed) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices })
    }
}

impl Face for Chunks {
    fn begin(&mut self, number: usize, choice: &Choice, events: &mut Events) {
        if self.kind == Kind::Chat {
            let delta = json!({ "delta": { "role": "assistant", "content": "" } });
            self.choice(number, delta, Value::Null, events);
        } else if !choice.said().is_empty() {
            // The prompt that it is to begin with.
            self.choice(number, json!({ "text": text(choice.said()) }), Value::Null, events);
        }
    }

    fn grow(&mut self, number: usize, news: News, events: &mut Events) {
        let text = text(&news.said);
        let with_number = |call: &Call| {
            let mut told = described(call);
            told["index"] = call.number.into();
            told
        };
        let calls: Vec<Value> = calls(&news.said).map(with_number).collect();
        let mut rest = match self.kind {
            Kind::Completion => json!({ "text": text }),
            Kind::Chat if calls.is_empty() => json!({ "delta": { "content": text } }),
            Kind::Chat if text.is_empty() => json!({ "delta": { "tool_calls": calls } }),
            Kind::Chat => json!({ "delta": { "content": text, "tool_calls": calls } }),
        };
        rest["logprobs"] = news.logprobs;
        self.choice(number, rest, Value::Null, events);
    }

    fn finish(&mut self, number: usize, choice: &Choice, events: &mut Events) {
        let rest = if self.kind == Kind::Chat { json!({ "delta": {} }) } else { json!({ "text": "" }) };
        self.choice(number, rest, choice.finish().into(), events);
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        if self.include_usage {
            let mut event = self.envelope(Vec::new(), true);
            event["usage"] = counts(usage);
            events.data(&event);
        }
        events.raw(LAST);
    }

    fn fail(&mut self, error: &ApiError, events: &mut Events) {
        events.data(&error.json());
        events.raw(LAST);
    }

    fn idle(&mut self, events: &mut Events) {
        events.raw(": still at it\n\n");
    }

    fn whole(self, choices: Vec<Choice>, usage: Usage) -> Value {
        let choices = choices.into_iter().enumerate().map(|(index, choice)| {
            let mut told = match self.kind {
                Kind::Completion => json!({ "finish_reason": choice.finish(), "text": text(choice.said()) }),
                Kind::Chat => json!({ "message": message(choice.said()), "finish_reason": choice.finish() }),
            };
            told["logprobs"] = choice.logprobs();
            told["index"] = index.into();
            told
        });
        let mut body = self.envelope(choices.collect(), false);
        body["usage"] = counts(usage);
        body
    }
}

/// What a stream ends with.
const LAST: &str = "data: [DONE]\n\n";

/// The whole answer of a chat.
fn message(said: &[Said]) -> Value {
    let (text, calls) = (text(said), calls(said).map(described).collect::<Vec<Value>>());
    let mut message = Map::new();
    message.insert("role".to_owned(), "assistant".into());
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    message.insert("content".to_owned(), content);
    message.insert("refusal".to_owned(), Value::Null);
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
    message.into()
}

fn text(said: &[Said]) -> String {
    said.iter().filter_map(|said| if let Said::Text(text) = said { Some(text.as_str()) } else { None }).collect()
}

fn calls(said: &[Said]) -> impl Iterator<Item = &Call> {
    said.iter().filter_map(|said| if let Said::Call(call) = said { Some(call) } else { None })
}

fn described(call: &Call) -> Value {
    let Call { id, name, arguments, .. } = call;
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

fn counts(Usage { prompt, reused, new }: Usage) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
        "prompt_tokens_details": { "cached_tokens": reused },
    })
}
