//! The answer as a response: items, and events that tell how they grow.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::kept::Entry;
use super::super::reply::{Call, Choice, Events, Face, News, Said, Usage, new_id, now};

/// A response in the making.
#[derive(Debug)]
pub(super) struct Output {
    id: String,
    created: u64,
    /// What it repeats of its request.
    repeated: Map<String, Value>,
    /// Who keeps it, with the conversation in front of it, if it is to be kept.
    keep: Option<(Arc<App>, Vec<Value>)>,
    /// Number of the next event.
    sequence: u64,
    /// Items that are complete.
    done: Vec<Value>,
    /// The message that is being written.
    open: Option<Open>,
    /// Probabilities of tokens whose text is still to come.
    logprobs: Vec<Value>,
    /// Whether it was cut off.
    cut: bool,
}

/// A message that is being written.
#[derive(Debug)]
struct Open {
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Output {
    /// A response that repeats this of its request. If it is to be kept, then by whom, behind which items.
    pub(super) fn new(repeated: Map<String, Value>, keep: Option<(Arc<App>, Vec<Value>)>) -> Self {
        let (id, created) = (new_id("resp_"), now());
        let (done, open, logprobs) = (Vec::new(), None, Vec::new());
        Self { id, created, repeated, keep, sequence: 0, done, open, logprobs, cut: false }
    }

    fn event(&mut self, kind: &str, rest: Value, events: &mut Events) {
        let mut event = json!({ "type": kind, "sequence_number": self.sequence });
        if let (Value::Object(event), Value::Object(rest)) = (&mut event, rest) {
            event.extend(rest);
        }
        self.sequence += 1;
        events.typed(&event);
    }

    /// Where the item stands that is being written.
    fn index(&self) -> usize {
        self.done.len()
    }

    fn text(&mut self, text: &str, events: &mut Events) {
        let index = self.index();
        let (mut open, is_new) = match self.open.take() {
            Some(open) => (open, false),
            None => (Open { id: new_id("msg_"), text: String::new(), logprobs: Vec::new() }, true),
        };
        if is_new {
            let item = message(&open.id, "in_progress", Vec::new());
            self.event("response.output_item.added", json!({ "output_index": index, "item": item }), events);
            let part = part("", &[]);
            let place = json!({ "item_id": open.id, "output_index": index, "content_index": 0, "part": part });
            self.event("response.content_part.added", place, events);
        }
        let new = std::mem::take(&mut self.logprobs);
        if !text.is_empty() {
            let delta = json!({ "item_id": open.id, "output_index": index, "content_index": 0, "delta": text, "logprobs": new });
            self.event("response.output_text.delta", delta, events);
        }
        open.text += text;
        open.logprobs.extend(new);
        self.open = Some(open);
    }

    fn close(&mut self, status: &str, events: &mut Events) {
        let Some(Open { id, text, mut logprobs }) = self.open.take() else { return };
        logprobs.append(&mut self.logprobs);
        let index = self.index();
        let place = |name: &str, value: Value| {
            let mut place = json!({ "item_id": id, "output_index": index, "content_index": 0 });
            place[name] = value;
            place
        };
        let mut over = place("text", text.as_str().into());
        over["logprobs"] = logprobs.clone().into();
        self.event("response.output_text.done", over, events);
        let part = part(&text, &logprobs);
        self.event("response.content_part.done", place("part", part.clone()), events);
        self.complete(message(&id, status, vec![part]), events);
    }

    fn call(&mut self, call: &Call, events: &mut Events) {
        self.close("completed", events);
        let (Call { id: call_id, name, arguments, .. }, id, index) = (call, new_id("fc_"), self.index());
        let item = |arguments: &str, status: &str| {
            json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments,
            })
        };
        let begun = json!({ "output_index": index, "item": item("", "in_progress") });
        self.event("response.output_item.added", begun, events);
        let delta = json!({ "item_id": id, "output_index": index, "delta": arguments });
        self.event("response.function_call_arguments.delta", delta, events);
        let over = json!({ "item_id": id, "output_index": index, "name": name, "arguments": arguments });
        self.event("response.function_call_arguments.done", over, events);
        self.complete(item(arguments, "completed"), events);
    }

    fn complete(&mut self, item: Value, events: &mut Events) {
        let over = json!({ "output_index": self.index(), "item": item });
        self.event("response.output_item.done", over, events);
        self.done.push(item);
    }

    /// The response as it is by now.
    fn response(&self, status: &str, usage: Value, error: Value) -> Value {
        let cut = if status == "incomplete" { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        let completed = if status == "completed" { now().into() } else { Value::Null };
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "completed_at": completed, "status": status, "error": error,
            "incomplete_details": cut, "output": self.done, "usage": usage,
        });
        if let Some(response) = response.as_object_mut() {
            response.extend(self.repeated.clone());
        }
        response
    }

    /// The response at its end, which is kept if that is wanted.
    fn last(&mut self, usage: Usage) -> Value {
        let Usage { prompt, reused, new } = usage;
        let counts = json!({
            "input_tokens": prompt, "input_tokens_details": { "cached_tokens": reused, "cache_write_tokens": 0 },
            "output_tokens": new, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": prompt + new,
        });
        let response = self.response(if self.cut { "incomplete" } else { "completed" }, counts, Value::Null);
        if let Some((app, mut items)) = self.keep.take() {
            items.extend(self.done.iter().cloned());
            app.kept.put(Entry { id: self.id.clone(), response: response.clone(), items });
        }
        response
    }
}

impl Face for Output {
    fn begin(&mut self, _: usize, _: &Choice, events: &mut Events) {
        let response = self.response("in_progress", Value::Null, Value::Null);
        self.event("response.created", json!({ "response": response }), events);
        self.event("response.in_progress", json!({ "response": response }), events);
    }

    fn grow(&mut self, _: usize, news: News, events: &mut Events) {
        if let Some(Value::Array(new)) = news.logprobs.get("content") {
            self.logprobs.extend(new.iter().cloned());
        }
        for said in &news.said {
            match said {
                Said::Text(text) => self.text(text, events),
                Said::Call(call) => self.call(call, events),
            }
        }
    }

    fn finish(&mut self, _: usize, choice: &Choice, events: &mut Events) {
        self.cut = choice.finish() == Some("length");
        if self.done.is_empty() {
            // Who says nothing says an empty text.
            self.text("", events);
        }
        self.close(if self.cut { "incomplete" } else { "completed" }, events);
    }

    fn end(&mut self, usage: Usage, events: &mut Events) {
        let kind = if self.cut { "response.incomplete" } else { "response.completed" };
        let response = self.last(usage);
        self.event(kind, json!({ "response": response }), events);
    }

    fn fail(&mut self, error: &ApiError, events: &mut Events) {
        let error = json!({ "code": "server_error", "message": error.message() });
        let response = self.response("failed", Value::Null, error);
        self.event("response.failed", json!({ "response": response }), events);
    }

    fn idle(&mut self, events: &mut Events) {
        events.raw(": still at it\n\n");
    }

    fn whole(mut self, choices: Vec<Choice>, usage: Usage) -> Value {
        // The same items as in pieces; nobody reads the events.
        let mut events = Events::default();
        for (number, choice) in choices.iter().enumerate() {
            let news = News { said: choice.said().to_vec(), logprobs: choice.logprobs() };
            self.grow(number, news, &mut events);
            self.finish(number, choice, &mut events);
        }
        self.last(usage)
    }
}

fn message(id: &str, status: &str, content: Vec<Value>) -> Value {
    json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
}

fn part(text: &str, logprobs: &[Value]) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs })
}

#[cfg(test)]
mod tests {
    use super::super::super::engine::{Done, Piece};
    use super::*;
    use crate::chat::ToolFormat;
    use crate::serve::tools::Tools;

    fn choice() -> Choice {
        let tools = json!({"tools": [{"type": "function", "function": {"name": "look"}}]}).to_string();
        let mut fields = crate::serve::fields::Fields::parse(&axum::body::Bytes::from(tools)).unwrap();
        let reading = Tools::take(&mut fields, Some(ToolFormat::Hermes)).unwrap().reading.map(Arc::new);
        Choice::new(reading, None)
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect()
    }

    #[test]
    fn text_and_calls_are_items_whose_events_come_in_order() {
        let (mut output, mut choice, mut events) = (Output::new(Map::new(), None), choice(), Events::default());
        output.begin(0, &choice, &mut events);
        let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"z\": 1}}\n</tool_call>";
        for text in ["I see", " it. ", call] {
            let news = choice.grow(Piece { text: text.to_owned(), logprobs: Vec::new() });
            output.grow(0, news, &mut events);
        }
        let done = Done { finish: "stop", stop: None, tokens: 7, reused: 2, logprob: None };
        let news = choice.end(done);
        output.grow(0, news, &mut events);
        output.finish(0, &choice, &mut events);
        output.end(Usage { prompt: 5, reused: 2, new: 7 }, &mut events);
        let events = events.taken();
        let expected = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ];
        assert_eq!(kinds(&events), expected);
        assert!(events.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));
        let response = &events.last().unwrap()["response"];
        assert_eq!((&response["status"], &response["usage"]["total_tokens"]), (&json!("completed"), &json!(12)));
        let [message, called] = [&response["output"][0], &response["output"][1]];
        assert_eq!((&message["content"][0]["text"], &message["status"]), (&json!("I see it. "), &json!("completed")));
        assert_eq!((&called["name"], &called["arguments"]), (&json!("look"), &json!("{\"z\":1}")));
        // Items are the same at their ends and in the response, and their events bear their identifiers.
        assert_eq!((&events[8]["item"], &events[12]["item"]), (message, called));
        assert!(events[3..8].iter().all(|event| event["item_id"] == message["id"] && event["output_index"] == 0));
        assert!(events[10..12].iter().all(|event| event["item_id"] == called["id"] && event["output_index"] == 1));
        // The same as a whole, but for identifiers.
        let whole = Output::new(Map::new(), None).whole(vec![choice], Usage { prompt: 5, reused: 2, new: 7 });
        assert_eq!((&whole["output"][0]["content"], &whole["usage"]), (&message["content"], &response["usage"]));
        assert_eq!(whole["output"][1]["call_id"], called["call_id"]);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_incomplete_and_one_that_fails_has_failed() {
        let (mut output, mut choice, mut events) = (Output::new(Map::new(), None), choice(), Events::default());
        choice.end(Done { finish: "length", stop: None, tokens: 1, reused: 0, logprob: None });
        output.finish(0, &choice, &mut events);
        output.end(Usage::default(), &mut events);
        let taken = events.taken();
        let last = taken.last().unwrap();
        assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.incomplete"), &json!("incomplete")));
        assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
        let item = &last["response"]["output"][0];
        assert_eq!((&item["status"], &item["content"][0]["text"]), (&json!("incomplete"), &json!("")));
        let mut output = Output::new(Map::new(), None);
        output.fail(&ApiError::internal("it broke"), &mut events);
        let failed = events.taken().pop().unwrap();
        assert_eq!(
            (&failed["type"], &failed["response"]["error"]["message"]),
            (&json!("response.failed"), &json!("it broke"))
        );
    }
}
