//! Calls at the beginning of a text, as JSON.

use serde::Deserialize;
use serde_json::error::Category;

use crate::chat::Json;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Part {
    /// Text for people.
    Text(String),
    /// A call of a tool.
    Call {
        /// Which.
        name: String,
        /// JSON.
        arguments: String,
    },
}

/// A call as models write it.
#[derive(Debug, Deserialize)]
struct Written {
    name: String,
    #[serde(alias = "parameters")]
    arguments: Option<Json>,
}

/// What the beginning of a text is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// Calls, and the bytes that they take.
    Calls(Vec<Part>, usize),
    /// Perhaps the beginning of a call.
    Unclear,
    /// No call.
    Nothing,
}

/// An object with a name and arguments.
pub(super) fn one(text: &str) -> Found {
    match first::<Written>(text) {
        Ok((Written { name, arguments: Some(arguments) }, end)) => Found::Calls(vec![call(name, &arguments)], end),
        Ok(_) => Found::Nothing,
        Err(found) => found,
    }
}

/// A list of them.
pub(super) fn several(text: &str) -> Found {
    match first::<Vec<Written>>(text) {
        Ok((list, end)) => {
            let calls = list.into_iter().map(|Written { name, arguments }| call(name, &arguments.unwrap_or_default()));
            Found::Calls(calls.collect(), end)
        }
        Err(found) => found,
    }
}

/// The name, and the arguments behind it: what Mistral's later tokenizers write.
pub(super) fn named(text: &str) -> Found {
    let Some(at) = text.find(['{', '[']) else {
        return if text.len() < 256 { Found::Unclear } else { Found::Nothing };
    };
    let (name, rest) = text.split_at(at);
    let mark = "[ARGS]";
    if mark.starts_with(rest) {
        return Found::Unclear;
    }
    let arguments = rest.strip_prefix(mark).unwrap_or(rest);
    let name = name.split('[').next().unwrap_or_default().trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Found::Nothing;
    }
    match first::<Json>(arguments) {
        Ok((value, end)) => Found::Calls(vec![call(name.to_owned(), &value)], at + rest.len() - arguments.len() + end),
        Err(found) => found,
    }
}

/// The JSON value that a text begins with, and its bytes.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Result<(T, usize), Found> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    match values.next() {
        Some(Ok(value)) => Ok((value, values.byte_offset())),
        Some(Err(error)) if error.classify() == Category::Eof => Err(Found::Unclear),
        None => Err(Found::Unclear),
        Some(Err(_)) => Err(Found::Nothing),
    }
}

fn call(name: String, arguments: &Json) -> Part {
    let arguments = match arguments.as_str() {
        // Some models write the object as a text.
        Some(text) => text.to_owned(),
        None if arguments.is_none() || arguments.is_undefined() => "{}".to_owned(),
        None => serde_json::to_string(arguments).unwrap_or_else(|_| "{}".to_owned()),
    };
    Part::Call { name, arguments }
}
