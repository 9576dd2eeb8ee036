//! The fields of a request, one by one.

use axum::body::Bytes;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Whole numbers up to here are exact as floats.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The fields of a request. Fields of null count as missing.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 if it is no JSON object.
    pub(super) fn parse(body: &Bytes) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut fields)) => {
                fields.retain(|_, value| !value.is_null());
                Ok(Self(fields))
            }
            Ok(_) => Err(ApiError::invalid("the request is no JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the request is no JSON: {error}"))),
        }
    }

    /// A field as it is, left where it is.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A field as it is.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::field(name, "must be a text")),
        }
    }

    /// A text of a few.
    pub(super) fn one_of(&mut self, name: &str, names: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = names.iter().find(|known| value.as_str() == Some(known));
        found.map(|&known| Some(known)).ok_or_else(|| ApiError::field(name, format!("must be {}", names.join(" or "))))
    }

    /// `true` or `false`, which it is if it is missing.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.choice(name)?.unwrap_or(false))
    }

    /// `true`, `false` or missing.
    pub(super) fn choice(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(ApiError::field(name, "must be true or false")),
        }
    }

    /// A whole number. Languages that have one kind of number alone write it as `4.0`.
    pub(super) fn whole(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let large = || value.as_u64().map(|_| i64::MAX);
        let float = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT).map(|n| n as i64);
        let number = value.as_i64().or_else(large).or_else(float).filter(|number| (least..=most).contains(number));
        let range = if most == i64::MAX { format!("of at least {least}") } else { format!("from {least} to {most}") };
        number.map(Some).ok_or_else(|| ApiError::field(name, format!("must be a whole number {range}")))
    }

    /// A number.
    pub(super) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        number
            .map(|number| Some(number as f32))
            .ok_or_else(|| ApiError::field(name, format!("must be a number from {least} to {most}")))
    }

    /// Refuses what would change the answer and is not supported; `harmless` are the values that change nothing.
    pub(super) fn refuse(&mut self, name: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless.contains(&value) => Err(ApiError::field(name, "is not supported by this server")),
            _ => Ok(()),
        }
    }
}
