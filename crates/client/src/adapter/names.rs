//! Words of the command line and of saved files: tasks and modes, and how such words are read.

use std::fmt;
use std::str::FromStr;

use petals_protocol::Injection;
use serde::{Deserialize, Serialize};

/// A word that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{got}` is not a {what}: use one of {known}")]
pub struct UnknownName {
    what: &'static str,
    got: String,
    known: String,
}

/// What the adapted model is trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Predict the next token.
    CausalLm,
    /// Classify a text by its last token's final hidden state.
    SeqCls,
}

/// How much of the model sees trained prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TuningMode {
    /// A prompt in front of the embeddings only (Lester et al. 2021).
    Ptune,
    /// Prompts in front of every block (Liu et al. 2021, and Petals' variant of it).
    DeepPtune,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 2] = [Self::CausalLm, Self::SeqCls];
}

impl TuningMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Ptune, Self::DeepPtune];

    /// The mode that an injection belongs to.
    pub fn of(injection: Injection) -> Self {
        if injection == Injection::None { Self::Ptune } else { Self::DeepPtune }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CausalLm => "causal-lm",
            Self::SeqCls => "seq-cls",
        })
    }
}

impl fmt::Display for TuningMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ptune => "ptune",
            Self::DeepPtune => "deep_ptune",
        })
    }
}

impl FromStr for Task {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_name("task", text, &Self::ALL)
    }
}

impl FromStr for TuningMode {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_name("mode", text, &Self::ALL)
    }
}

/// The one of `all` that is printed as `text`; `what` says in the error what they are.
pub(crate) fn parse_name<T: Copy + fmt::Display>(what: &'static str, text: &str, all: &[T]) -> Result<T, UnknownName> {
    all.iter().copied().find(|name| name.to_string() == text).ok_or_else(|| {
        let known: Vec<String> = all.iter().map(T::to_string).collect();
        UnknownName { what, got: text.to_owned(), known: known.join(", ") }
    })
}

/// [`Injection`] in saved files: `none`, `add` or `replace`.
pub(crate) mod injection_name {
    use petals_protocol::Injection;
    use serde::{Deserialize, Deserializer, Serializer, de};

    const NAMES: [(Injection, &str); 3] =
        [(Injection::None, "none"), (Injection::Add, "add"), (Injection::Replace, "replace")];

    pub(crate) fn serialize<S: Serializer>(injection: &Injection, serializer: S) -> Result<S::Ok, S::Error> {
        let name = NAMES.iter().find(|(known, _)| known == injection).map_or("none", |(_, name)| name);
        serializer.serialize_str(name)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Injection, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(injection, _)| *injection);
        found.ok_or_else(|| de::Error::custom(format!("`{text}` is not an injection: none, add or replace")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_as_they_are_printed() {
        assert!(Task::ALL.iter().all(|task| task.to_string().parse() == Ok(*task)));
        assert!(TuningMode::ALL.iter().all(|mode| mode.to_string().parse() == Ok(*mode)));
        assert_eq!(serde_json::to_string(&Task::SeqCls).unwrap(), "\"seq-cls\"");
        assert_eq!(serde_json::to_string(&TuningMode::DeepPtune).unwrap(), "\"deep_ptune\"");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = "deep-ptune".parse::<TuningMode>().unwrap_err().to_string();
        assert_eq!(message, "`deep-ptune` is not a mode: use one of ptune, deep_ptune");
    }
}
