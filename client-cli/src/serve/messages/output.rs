//! The answer as a message: blocks, and events that tell how they grow.

use serde_json::{Value, json};

use super::super::engine::Done;
use super::super::error::ApiError;
use super::super::reply::{Choice, Events, Face, News, Said, Usage, new_id};
use super::errors;

/// A message in the making.
#[derive(Debug)]
pub(super) struct Output {
    id: String,
    model: String,
    prompt_tokens: usize,
    /// Blocks that were begun.
    blocks: usize,
    /// Whether the last of them is text that goes on.
    open: bool,
    /// Why it ended, and by which stop text.
    stop: (Value, Value),
}

impl Output {
    /// A message of a model behind a prompt of so many tokens.
    pub(super) fn new(model: String, prompt_tokens: usize) -> Self {
        Self { id: new_id("msg_"), model, prompt_tokens, blocks: 0, open: false, stop: (Value::Null, Value::Null) }
    }

    fn message(&self, content: Vec<Value>, usage: Usage) -> Value {
        let (reason, sequence) = &self.stop;
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content, "stop_reason": reason,
            "stop_sequence": sequence, "usage": counts(usage),
        })
    }

    fn begin_block(&mut self, block: &Value, events: &mut Events) {
        events.typed(&json!({ "type": "content_block_start", "index": self.blocks, "content_block": block }));
        self.blocks += 1;
    }

    fn delta(&self, delta: &Value, events: &mut Events) {
        let index = self.blocks.saturating_sub(1);
        events.typed(&json!({ "type": "content_block_delta", "index": index, "delta": delta }));
    }

    fn end_block(&self, events: &mut Events) {
        events.typed(&json!({ "type": "content_block_stop", "index": self.blocks.saturating_sub(1) }));
    }

    fn close(&mut self, events: &mut Events) {
        if std::mem::take(&mut self.open) {
            self.end_block(events);
        }
    }
}

impl Face for Output {
    fn begin(&mut self, _: usize, _: &Choice, events: &mut Events) {
        // What of the prompt the servers had is known at the end.
        let usage = Usage { prompt: self.prompt_tokens, ..Usage::default() };
        events.typed(&json!({ "type": "message_start", "message": self.message(Vec::new(), usage) }));
        self.idle(events);
    }

    fn grow(&mut self, _: usize, news: News, events: &mut Events) {
        for said in news.said {
            match said {
                Said::Text(text) => {
                    if !std::mem::replace(&mut self.open, true) {
                        self.begin_block(&json!({ "type": "text", "text": "" }), events);
                    }
                    self.delta(&json!({ "type": "text_delta", "text": text }), events);
                }
                Said::Call(call) => {
                    self.close(events);
                    self.begin_block(&tool_use(&call.id, &call.name, json!({})), events);
                    let json = input(&call.arguments).to_string();
                    self.delta(&json!({ "type": "input_json_delta", "partial_json": json }), events);
                    self.end_block(events);
                }
            }
        }
    }

    fn finish(&mut self, _: usize, choice: &Choice, events: &mut Events) {
        self.close(events);
        self.stop = reason(choice.finish(), choice.done());
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        let (reason, sequence) = &self.stop;
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        events.typed(&json!({ "type": "message_delta", "delta": delta, "usage": counts(usage) }));
        events.typed(&json!({ "type": "message_stop" }));
    }

    fn fail(&mut self, error: &ApiError, events: &mut Events) {
        events.typed(&errors::body(error, None));
    }

    fn idle(&mut self, events: &mut Events) {
        events.typed(&json!({ "type": "ping" }));
    }

    fn whole(mut self, choices: Vec<Choice>, usage: Usage) -> Value {
        let Some(choice) = choices.first() else { return self.message(Vec::new(), usage) };
        self.stop = reason(choice.finish(), choice.done());
        let content = choice.said().iter().map(|said| match said {
            Said::Text(text) => json!({ "type": "text", "text": text }),
            Said::Call(call) => tool_use(&call.id, &call.name, input(&call.arguments)),
        });
        self.message(content.collect(), usage)
    }
}

/// Why an answer ended, and by which stop text.
fn reason(finish: Option<&str>, done: Option<&Done>) -> (Value, Value) {
    match (finish, done.and_then(|done| done.stop.as_deref())) {
        (None, _) => (Value::Null, Value::Null),
        (Some("tool_calls"), _) => ("tool_use".into(), Value::Null),
        (Some("length"), _) => ("max_tokens".into(), Value::Null),
        (_, Some(stop)) => ("stop_sequence".into(), stop.into()),
        (_, None) => ("end_turn".into(), Value::Null),
    }
}

/// What was in the cache is counted apart from the rest of the prompt here.
fn counts(Usage { prompt, reused, new }: Usage) -> Value {
    json!({
        "input_tokens": prompt.saturating_sub(reused), "cache_creation_input_tokens": 0, "cache_read_input_tokens": reused,
        "output_tokens": new,
    })
}

fn tool_use(id: &str, name: &str, input: Value) -> Value {
    let id = id.strip_prefix("call_").map_or_else(|| id.to_owned(), |random| format!("toolu_{random}"));
    json!({ "type": "tool_use", "id": id, "name": name, "input": input })
}

/// The arguments of a call, which are an object here. A model that wrote something else finds it again in one.
fn input(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(input)) => input.into(),
        Ok(other) => json!({ "arguments": other }),
        Err(_) => json!({ "arguments": arguments }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Bytes;

    use super::*;
    use crate::chat::ToolFormat;
    use crate::serve::engine::Piece;
    use crate::serve::fields::Fields;
    use crate::serve::tools::Tools;

    fn done(stop: Option<&str>) -> Done {
        Done { finish: "stop", stop: stop.map(str::to_owned), tokens: 1, reused: 0, logprob: None }
    }

    #[test]
    fn the_reason_of_an_end_is_told() {
        for (finish, stop, expected) in [
            ("stop", None, json!(["end_turn", null])),
            ("stop", Some("END"), json!(["stop_sequence", "END"])),
            ("length", None, json!(["max_tokens", null])),
            ("tool_calls", Some("END"), json!(["tool_use", null])),
        ] {
            let (reason, sequence) = reason(Some(finish), Some(&done(stop)));
            assert_eq!(json!([reason, sequence]), expected);
        }
    }

    #[test]
    fn text_and_calls_are_blocks_whose_events_come_in_order() {
        let tools = json!({"tools": [{"type": "function", "function": {"name": "look"}}]}).to_string();
        let mut fields = Fields::parse(&Bytes::from(tools)).unwrap();
        let reading = Tools::take(&mut fields, Some(ToolFormat::Hermes)).unwrap().reading.map(Arc::new);
        let mut choice = Choice::new(reading, None);
        let (mut output, mut events) = (Output::new("m".to_owned(), 5), Events::default());
        output.begin(0, &choice, &mut events);
        let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"z\": 1}}\n</tool_call>";
        for text in ["I see", " it. ", call] {
            output.grow(0, choice.grow(Piece { text: text.to_owned(), logprobs: Vec::new() }), &mut events);
        }
        output.grow(0, choice.end(done(None)), &mut events);
        output.finish(0, &choice, &mut events);
        let usage = Usage { prompt: 5, reused: 2, new: 7 };
        output.end(usage, &mut events);
        let events = events.taken();
        let told: Vec<(&str, &Value)> =
            events.iter().map(|event| (event["type"].as_str().unwrap_or_default(), &event["index"])).collect();
        let (none, first, second) = (Value::Null, json!(0), json!(1));
        let expected = [
            ("message_start", &none),
            ("ping", &none),
            ("content_block_start", &first),
            ("content_block_delta", &first),
            ("content_block_delta", &first),
            ("content_block_stop", &first),
            ("content_block_start", &second),
            ("content_block_delta", &second),
            ("content_block_stop", &second),
            ("message_delta", &none),
            ("message_stop", &none),
        ];
        assert_eq!(told, expected);
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 5);
        assert_eq!(events[6]["content_block"]["input"], json!({}));
        assert_eq!(events[7]["delta"]["partial_json"], r#"{"z":1}"#);
        assert_eq!(events[9]["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
        let counts = json!({"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 7});
        assert_eq!(events[9]["usage"], counts);
        // The same as a whole.
        let whole = Output::new("m".to_owned(), 5).whole(vec![choice], usage);
        let called =
            json!({"type": "tool_use", "id": events[6]["content_block"]["id"], "name": "look", "input": {"z": 1}});
        assert_eq!(whole["content"], json!([{"type": "text", "text": "I see it. "}, called]));
        assert_eq!((&whole["stop_reason"], &whole["usage"]), (&json!("tool_use"), &counts));
    }

    #[test]
    fn arguments_are_an_object() {
        assert_eq!(input(r#"{"z": 1, "a": 2}"#).to_string(), r#"{"z":1,"a":2}"#);
        assert_eq!((input("[]"), input("no JSON")), (json!({"arguments": []}), json!({"arguments": "no JSON"})));
        assert_eq!(tool_use("call_1", "f", json!({}))["id"], "toolu_1");
        assert_eq!(tool_use("Ab3", "f", json!({}))["id"], "Ab3", "Mistral's");
    }
}
