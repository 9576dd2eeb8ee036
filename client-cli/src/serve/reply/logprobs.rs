//! How probable tokens were, in OpenAI's two forms.

use std::sync::Arc;

use petals_client::TokenLogprobs;
use serde_json::{Map, Value, json};

use crate::text::Pieces;

/// The least logarithm that is told; JSON has no infinity. vLLM has the same.
const LEAST: f32 = -9999.0;

/// How probable a text's tokens were, place by place.
#[derive(Debug)]
pub(in crate::serve) struct Places {
    pieces: Arc<Pieces>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// A list of objects, as chats have it.
    Chat(Vec<Value>),
    /// Lists beside each other, as completions have it.
    Completion(Lists),
}

#[derive(Debug, Clone, Default)]
struct Lists {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<Value>,
    /// Characters of the text so far.
    offset: usize,
}

impl Places {
    /// Of a chat's answer.
    pub(super) fn chat(pieces: Arc<Pieces>) -> Self {
        Self { pieces, form: Form::Chat(Vec::new()) }
    }

    /// Of a completion.
    pub(super) fn completion(pieces: Arc<Pieces>) -> Self {
        Self { pieces, form: Form::Completion(Lists::default()) }
    }

    /// Adds the tokens of a prompt, which is `text`. The first has no probability: nothing is in front of it. Returns what is new.
    pub(super) fn prompt(&mut self, text: &str, tokens: &[u32], scores: &[TokenLogprobs]) -> Value {
        let rest = tokens.iter().zip(std::iter::once(None).chain(scores.iter().map(Some)));
        let new = self.add(&rest.map(|(&token, score)| (token, score)).collect::<Vec<_>>());
        if let Form::Completion(lists) = &mut self.form {
            // Special tokens that are written out in the prompt are counted here, and spaces that the tokenizer put in front are not.
            lists.offset = text.chars().count();
        }
        new
    }

    /// Adds new tokens. Returns what is new.
    pub(super) fn generated(&mut self, scores: &[TokenLogprobs]) -> Value {
        self.add(&scores.iter().map(|score| (score.token, Some(score))).collect::<Vec<_>>())
    }

    /// All of them.
    pub(super) fn all(&self) -> Value {
        match &self.form {
            Form::Chat(list) => json!({ "content": list, "refusal": null }),
            Form::Completion(lists) => lists.json(0),
        }
    }

    fn add(&mut self, places: &[(u32, Option<&TokenLogprobs>)]) -> Value {
        if places.is_empty() {
            return Value::Null;
        }
        match &mut self.form {
            Form::Chat(list) => {
                let pieces = &self.pieces;
                let described = |token: u32, logprob: f32| {
                    let bytes = pieces.bytes(token);
                    json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob.max(LEAST), "bytes": bytes })
                };
                let new = places.iter().filter_map(|(token, score)| {
                    let score = (*score)?;
                    let mut place = described(*token, score.logprob);
                    place["top_logprobs"] =
                        score.top.iter().map(|&(token, logprob)| described(token, logprob)).collect();
                    Some(place)
                });
                let new: Vec<Value> = new.collect();
                list.extend(new.iter().cloned());
                json!({ "content": new, "refusal": null })
            }
            Form::Completion(lists) => {
                let before = lists.tokens.len();
                places.iter().for_each(|&(token, score)| lists.add(&self.pieces, token, score));
                lists.json(before)
            }
        }
    }
}

impl Lists {
    fn add(&mut self, pieces: &Pieces, token: u32, score: Option<&TokenLogprobs>) {
        let name = |token| String::from_utf8_lossy(&pieces.bytes(token)).into_owned();
        self.offsets.push(self.offset.into());
        let text = name(token);
        if !pieces.is_hidden(token) {
            self.offset += text.chars().count();
        }
        self.tokens.push(text.into());
        self.logprobs.push(score.map_or(Value::Null, |score| score.logprob.max(LEAST).into()));
        self.top.push(score.map_or(Value::Null, |score| {
            // The token itself and the most probable ones, as vLLM has it. Two tokens that read alike are one key, of the greater probability:
            // who looks whether the token was the most probable one must find out.
            let mut top: Map<String, Value> = Map::new();
            for (token, logprob) in std::iter::once((token, score.logprob)).chain(score.top.iter().copied()) {
                let logprob = f64::from(logprob.max(LEAST));
                let entry = top.entry(name(token)).or_insert_with(|| logprob.into());
                if entry.as_f64().is_some_and(|before| before < logprob) {
                    *entry = logprob.into();
                }
            }
            top.into()
        }));
    }

    /// From a place on.
    fn json(&self, from: usize) -> Value {
        let of = |list: &[Value]| list.get(from..).unwrap_or_default().to_vec();
        json!({
            "tokens": of(&self.tokens), "token_logprobs": of(&self.logprobs), "top_logprobs": of(&self.top),
            "text_offset": of(&self.offsets),
        })
    }
}
