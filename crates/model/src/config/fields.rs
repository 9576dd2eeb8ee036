//! Typed, bounded access to the keys of a `config.json`.
//!
//! Whether a key may be `null` is what transformers does with it: it has no default of its own then, only a missing key has.

use serde_json::{Map, Value};

use super::{Activation, ConfigError};

/// Longest value that is repeated in an error.
const SHOWN: usize = 80;

/// The object of the file, or one nested in it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// The key that it is nested in.
    place: Option<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, place: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The key as errors name it.
    pub(super) fn name(&self, key: &str) -> String {
        self.place.map_or_else(|| key.to_owned(), |place| format!("{place}.{key}"))
    }

    pub(super) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing(self.name(key))
    }

    pub(super) fn invalid(&self, key: &str, got: impl Into<String>, expected: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { key: self.name(key), got: got.into(), expected: expected.into() }
    }

    /// The error for a value that is not what was expected.
    pub(super) fn wrong(&self, key: &str, got: &Value, expected: impl Into<String>) -> ConfigError {
        let mut got = got.to_string();
        if got.chars().nth(SHOWN).is_some() {
            got = got.chars().take(SHOWN).chain("...".chars()).collect();
        }
        self.invalid(key, got, expected)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// The objects below this one.
    pub(super) fn objects(&self) -> impl Iterator<Item = Fields<'a>> + use<'a> {
        self.map.values().filter_map(Value::as_object).map(Fields::new)
    }

    /// The value, with `null` counted as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// An object of the file itself.
    pub(super) fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let fields = |map| Fields { map, place: Some(key) };
        value.as_object().map(|map| Some(fields(map))).ok_or_else(|| self.wrong(key, value, "an object"))
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_array().map(|list| Some(list.as_slice())).ok_or_else(|| self.wrong(key, value, "a list"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// An extent from 1 to `max`, if present. A float is none, as torch takes integers alone.
    fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        size.map(Some).ok_or_else(|| self.wrong(key, value, format!("an integer from 1 to {max}")))
    }

    /// An extent from 1 to `max`.
    pub(super) fn size(&self, key: &str, max: usize) -> Result<usize, ConfigError> {
        self.optional_size(key, max)?.ok_or_else(|| self.missing(key))
    }

    /// A count of which transformers makes no extent, so that a float like `4096.0` will do.
    pub(super) fn loose_size_or(
        &self,
        key: &str,
        default: usize,
        min: usize,
        max: usize,
    ) -> Result<usize, ConfigError> {
        let Some(value) = self.map.get(key) else { return Ok(default) };
        // Above 2^53 floats are not all integers any more.
        let whole = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=9e15).contains(n)).map(|n| n as u64);
        let size = value.as_u64().or(whole).and_then(|n| usize::try_from(n).ok());
        size.filter(|n| (min..=max).contains(n)).ok_or_else(|| {
            let least = if max == usize::MAX { format!("{min} or more") } else { format!("{min} to {max}") };
            self.wrong(key, value, format!("an integer from {least}; without the key it is {default}"))
        })
    }

    /// A number of positions.
    pub(super) fn positions(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        self.loose_size_or(key, default, 1, 1 << 24)
    }

    /// A number from `min` to `max`, if present.
    pub(super) fn number(&self, key: &str, min: f64, max: f64) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| (min..=max).contains(n));
        number.map(Some).ok_or_else(|| self.wrong(key, value, format!("a number from {min:e} to {max:e}")))
    }

    /// A number from `min` to `max`. `null` is refused: transformers computes with it.
    pub(super) fn number_or(&self, key: &str, default: f64, min: f64, max: f64) -> Result<f64, ConfigError> {
        if self.is_null(key) {
            let expected = format!("a number from {min:e} to {max:e}; without the key it is {default:e}");
            return Err(self.wrong(key, &Value::Null, expected));
        }
        Ok(self.number(key, min, max)?.unwrap_or(default))
    }

    /// One id, a list of ids or nothing. Ids below zero stand for nothing too.
    pub(super) fn token_ids(&self, key: &str, default: Option<u32>) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.map.get(key) else { return Ok(default.into_iter().collect()) };
        let values = match value {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let wrong = || self.wrong(key, value, "a token id or a list of them");
        let mut ids = Vec::with_capacity(values.len());
        for value in values {
            let id = value.as_f64().filter(|id| id.fract() == 0.0 && *id <= f64::from(u32::MAX)).ok_or_else(wrong)?;
            ids.extend((id >= 0.0).then_some(id as u32));
        }
        Ok(ids)
    }

    /// A list of positive numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>, ConfigError> {
        let list = self.list(key)?.ok_or_else(|| self.missing(key))?;
        let number = |value: &Value| value.as_f64().filter(|n| (1e-6..=1e9).contains(n));
        let numbers = list.iter().map(number).collect::<Option<Vec<_>>>();
        numbers.ok_or_else(|| self.invalid(key, "a list with something else", "a list of positive numbers"))
    }

    /// The first of several names of a key that is there, or the first of all.
    pub(super) fn either<'k>(&self, keys: &[&'k str]) -> &'k str {
        let there = keys.iter().find(|key| self.get(key).is_some());
        there.or(keys.first()).copied().unwrap_or_default()
    }

    /// A flag of which `null` means false and only a missing key the default.
    pub(super) fn flag_unless_missing(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        if self.has(key) { self.flag(key) } else { Ok(default) }
    }

    /// An extent from 1 to `max`, or what a missing key means.
    pub(super) fn size_or(&self, key: &str, default: usize, max: usize) -> Result<usize, ConfigError> {
        match self.optional_size(key, max)? {
            Some(size) => Ok(size),
            None if default <= max => Ok(default),
            None => Err(self.invalid(key, format!("{default}, as the key is missing"), format!("at most {max}"))),
        }
    }

    pub(super) fn key_value_heads(&self, default: Option<usize>, heads: usize) -> Result<usize, ConfigError> {
        const KEY: &str = "num_key_value_heads";
        let found = match default.filter(|_| !self.has(KEY)) {
            Some(default) => default,
            None => self.optional_size(KEY, heads)?.unwrap_or(heads),
        };
        if heads.is_multiple_of(found) {
            return Ok(found);
        }
        let missing = if self.has(KEY) { "" } else { ", as the key is missing" };
        let expected = format!("a divisor of num_attention_heads = {heads}");
        Err(self.invalid(KEY, format!("{found}{missing}"), expected))
    }

    /// Width of a head; `default` is what a missing key means, or else `hidden / heads`.
    pub(super) fn head_dim(&self, default: Option<usize>, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
        const KEY: &str = "head_dim";
        match (self.optional_size(KEY, 1 << 10)?, default) {
            (Some(found), _) => Ok(found),
            (None, Some(default)) if self.is_null(KEY) => {
                let expected = format!("an integer; without the key it is {default}");
                Err(self.wrong(KEY, &Value::Null, expected))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => self.head_width(hidden, heads),
        }
    }

    /// The width of heads that share the hidden states' evenly.
    pub(super) fn head_width(&self, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
        if hidden.is_multiple_of(heads) {
            return Ok(hidden / heads);
        }
        let expected = format!("a divisor of hidden_size = {hidden}, as `head_dim` is not given");
        Err(self.invalid("num_attention_heads", heads.to_string(), expected))
    }

    /// Refuses an odd number of values to rotate.
    pub(super) fn even(&self, key: &str, rotated: usize) -> Result<usize, ConfigError> {
        if rotated.is_multiple_of(2) && rotated > 0 {
            return Ok(rotated);
        }
        Err(self.invalid(key, rotated.to_string(), "an even number, as pairs of a head's values are rotated"))
    }

    /// The activation under `key`; `default` is what a missing key means.
    pub(super) fn activation(&self, key: &str, default: Activation) -> Result<Activation, ConfigError> {
        let found = match self.text(key)? {
            None if !self.is_null(key) => return Ok(default),
            found => found,
        };
        let named = found.and_then(|found| ACTIVATIONS.iter().find(|(name, _)| *name == found));
        named.map(|(_, activation)| *activation).ok_or_else(|| ConfigError::Unsupported {
            key: self.name(key),
            got: found.map_or_else(|| "null".to_owned(), |found| format!("`{}`", found.escape_default())),
            supported: format!("supported are {}", ACTIVATIONS.map(|(name, _)| name).join(", ")),
            remedy: "use another model".to_owned(),
        })
    }
}

/// Activations by the names that transformers knows them under.
const ACTIVATIONS: [(&str, Activation); 9] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("relu2", Activation::ReluSquared),
];
