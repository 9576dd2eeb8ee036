//! Words of the command line and of saved files: tasks and modes, and how such words are read.

use std::fmt;
use std::str::FromStr;

use petals_protocol::{Injection, WeightChange};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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

/// What is trained: something in front of the text, changes of the frozen weights, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TuningMode {
    /// In front of the text.
    pub prefix: Option<PrefixMode>,
    /// Of the weights.
    pub weights: Option<WeightMode>,
}

/// What is in front of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefixMode {
    /// A prompt in front of the embeddings only (Lester et al. 2021).
    Ptune,
    /// Prompts in front of every block (Liu et al. 2021, and Petals' variant of it).
    DeepPtune,
    /// Keys and values in front of the text's in every block (Li and Liang 2021).
    Prefix,
}

/// How frozen weights are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightMode {
    /// Low-rank products beside them (LoRA, Hu et al. 2021).
    Lora,
    /// Vectors that keys, values and the MLP's inside are multiplied with (IA3, Liu et al. 2022).
    Ia3,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 2] = [Self::CausalLm, Self::SeqCls];
}

impl TuningMode {
    /// A prompt in front of the embeddings.
    pub const PTUNE: Self = Self { prefix: Some(PrefixMode::Ptune), weights: None };
    /// Keys and values in front of every block's.
    pub const PREFIX: Self = Self { prefix: Some(PrefixMode::Prefix), weights: None };
    /// Prompts in front of every block.
    pub const DEEP_PTUNE: Self = Self { prefix: Some(PrefixMode::DeepPtune), weights: None };

    /// Every mode.
    pub fn all() -> Vec<Self> {
        let prefixes = [Some(PrefixMode::Ptune), Some(PrefixMode::DeepPtune), Some(PrefixMode::Prefix), None];
        let weights = [None, Some(WeightMode::Lora), Some(WeightMode::Ia3)];
        let all = weights.into_iter().flat_map(|weights| prefixes.map(|prefix| Self { prefix, weights }));
        all.filter(|mode| mode.prefix.is_some() || mode.weights.is_some()).collect()
    }

    /// The mode that tables belong to.
    pub fn of(prefix_len: usize, injection: Injection, weights: WeightChange) -> Self {
        let prefix = match injection {
            Injection::None if prefix_len == 0 && weights != WeightChange::None => None,
            Injection::None => Some(PrefixMode::Ptune),
            Injection::Add | Injection::Replace => Some(PrefixMode::DeepPtune),
            Injection::KeysValues => Some(PrefixMode::Prefix),
        };
        let weights = match weights {
            WeightChange::None => None,
            WeightChange::LowRank { .. } => Some(WeightMode::Lora),
            WeightChange::Scales { .. } => Some(WeightMode::Ia3),
        };
        Self { prefix, weights }
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
        let prefix = self.prefix.map(|prefix| match prefix {
            PrefixMode::Ptune => "ptune",
            PrefixMode::DeepPtune => "deep_ptune",
            PrefixMode::Prefix => "prefix",
        });
        let weights = self.weights.map(|weights| match weights {
            WeightMode::Lora => "lora",
            WeightMode::Ia3 => "ia3",
        });
        f.write_str(&prefix.into_iter().chain(weights).collect::<Vec<_>>().join("+"))
    }
}

impl Serialize for TuningMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TuningMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
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
        // Either order: `lora+ptune` is `ptune+lora`.
        let turned = text.split_once('+').map(|(first, second)| format!("{second}+{first}"));
        let all = Self::all();
        let found = all.iter().copied().find(|mode| turned.as_deref() == Some(mode.to_string().as_str()));
        found.map_or_else(|| parse_name("mode", text, &all), Ok)
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

    const NAMES: [(Injection, &str); 4] = [
        (Injection::None, "none"),
        (Injection::Add, "add"),
        (Injection::Replace, "replace"),
        (Injection::KeysValues, "keys_values"),
    ];

    pub(crate) fn serialize<S: Serializer>(injection: &Injection, serializer: S) -> Result<S::Ok, S::Error> {
        let name = NAMES.iter().find(|(known, _)| known == injection).map_or("none", |(_, name)| name);
        serializer.serialize_str(name)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Injection, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(injection, _)| *injection);
        found.ok_or_else(|| {
            de::Error::custom(format!("`{text}` is not an injection: none, add, replace or keys_values"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_as_they_are_printed() {
        assert!(Task::ALL.iter().all(|task| task.to_string().parse() == Ok(*task)));
        assert!(TuningMode::all().iter().all(|mode| mode.to_string().parse() == Ok(*mode)));
        assert_eq!("lora+deep_ptune".parse::<TuningMode>().unwrap().to_string(), "deep_ptune+lora");
        assert_eq!(serde_json::to_string(&Task::SeqCls).unwrap(), "\"seq-cls\"");
        assert_eq!(serde_json::to_string(&TuningMode::DEEP_PTUNE).unwrap(), "\"deep_ptune\"");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = "deep-ptune".parse::<TuningMode>().unwrap_err().to_string();
        assert!(message.starts_with("`deep-ptune` is not a mode: use one of ptune, deep_ptune, prefix"), "{message}");
    }
}
