//! Typed, bounded access to the keys of a `config.json`.

use serde_json::{Map, Value};

use super::ConfigError;
use super::family::Family;

/// The object of the file, or one nested in it.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

fn invalid(key: &'static str, got: &Value, expected: impl Into<String>) -> ConfigError {
    let mut got = got.to_string();
    if got.len() > 80 {
        got = got.chars().take(80).chain("...".chars()).collect();
    }
    ConfigError::Invalid { key, got, expected: expected.into() }
}

impl<'a> Fields<'a> {
    /// The value, with `null` counted as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| invalid(key, value, "a string"))
    }

    pub(super) fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_object().map(|map| Some(Fields(map))).ok_or_else(|| invalid(key, value, "an object"))
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| invalid(key, value, "true or false"))
    }

    /// An extent from 1 to `max`, if present.
    pub(super) fn optional_size(&self, key: &'static str, max: usize) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        size.map(Some).ok_or_else(|| invalid(key, value, format!("an integer from 1 to {max}")))
    }

    /// An extent from 1 to `max`.
    pub(super) fn size(&self, key: &'static str, max: usize) -> Result<usize, ConfigError> {
        self.optional_size(key, max)?.ok_or(ConfigError::Missing(key))
    }

    /// A number from `min` to `max`, if present.
    pub(super) fn number(&self, key: &'static str, min: f64, max: f64) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| (min..=max).contains(n));
        number.map(Some).ok_or_else(|| invalid(key, value, format!("a number from {min:e} to {max:e}")))
    }

    pub(super) fn eps(&self) -> Result<f32, ConfigError> {
        let eps = self.number("rms_norm_eps", 1e-12, 0.1)?.ok_or(ConfigError::Missing("rms_norm_eps"))?;
        Ok(eps as f32)
    }

    pub(super) fn initializer_range(&self) -> Result<f32, ConfigError> {
        Ok(self.number("initializer_range", 0.0, 1e3)?.unwrap_or(0.02) as f32)
    }

    /// One id, a list of ids or nothing.
    pub(super) fn token_ids(&self, key: &'static str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match value.as_array() {
            Some(list) => list.iter().map(id).collect(),
            None => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| invalid(key, value, "a token id or a list of them"))
    }

    pub(super) fn key_value_heads(&self, family: &Family, heads: usize) -> Result<usize, ConfigError> {
        const KEY: &str = "num_key_value_heads";
        let optional = self.optional_size(KEY, heads)?;
        let found = match optional {
            None if family.key_value_heads_optional => heads,
            None => return Err(ConfigError::Missing(KEY)),
            Some(found) => found,
        };
        if heads.is_multiple_of(found) {
            return Ok(found);
        }
        Err(invalid(KEY, &Value::from(found), format!("a divisor of num_attention_heads = {heads}")))
    }

    pub(super) fn head_dim(&self, family: &Family, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
        const KEY: &str = "head_dim";
        let head_dim = match self.optional_size(KEY, 1 << 10)? {
            Some(found) => found,
            None if !family.head_dim_optional => return Err(ConfigError::Missing(KEY)),
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of hidden_size = {hidden}, as `head_dim` is not given");
                return Err(invalid("num_attention_heads", &Value::from(heads), expected));
            }
        };
        if head_dim.is_multiple_of(2) {
            return Ok(head_dim);
        }
        Err(invalid(KEY, &Value::from(head_dim), "an even number, as halves of a head are rotated"))
    }

    pub(super) fn only_silu(&self) -> Result<(), ConfigError> {
        match self.text("hidden_act")? {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => Err(ConfigError::Unsupported {
                key: "hidden_act",
                got: format!("`{}`", other.escape_default()),
                supported: "only silu is",
            }),
        }
    }

    /// Refuses a sliding window that could hide anything.
    pub(super) fn full_attention(&self, family: &Family) -> Result<(), ConfigError> {
        if family.window_needs_flag && !self.flag("use_sliding_window")? {
            return Ok(());
        }
        let Some(window) = self.optional_size("sliding_window", usize::MAX)? else { return Ok(()) };
        if window >= self.size("max_position_embeddings", 1 << 24)? {
            return Ok(());
        }
        Err(ConfigError::Unsupported {
            key: "sliding_window",
            got: window.to_string(),
            supported: "only windows of at least max_position_embeddings are",
        })
    }
}
