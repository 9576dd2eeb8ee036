//! The fields of a request that both kinds of completion have.

use axum::body::Bytes;
use petals_client::Sampling;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Most texts of one request.
const TEXTS: u64 = 16;
/// Most stop strings of a request, and bytes of each.
const STOPS: (usize, usize) = (16, 256);

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

    /// A field as it is.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::field(name, "must be a text")),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(ApiError::field(name, "must be true or false")),
        }
    }

    fn whole(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (least..=most).contains(number));
        let range = if most == u64::MAX { format!("of at least {least}") } else { format!("from {least} to {most}") };
        number.map(Some).ok_or_else(|| ApiError::field(name, format!("must be a whole number {range}")))
    }

    fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        number
            .map(|number| Some(number as f32))
            .ok_or_else(|| ApiError::field(name, format!("must be a number from {least} to {most}")))
    }

    fn stop(&mut self) -> Result<Vec<String>, ApiError> {
        let wrong = |message: &str| Err(ApiError::field("stop", message));
        let stop = match self.take("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(list)) => {
                let texts = list.iter().map(|value| value.as_str().map(str::to_owned)).collect();
                match texts {
                    Some(texts) => texts,
                    None => return wrong("must be a text or a list of texts"),
                }
            }
            Some(_) => return wrong("must be a text or a list of texts"),
        };
        if stop.len() > STOPS.0 || stop.iter().any(|text| text.is_empty() || text.len() > STOPS.1) {
            return wrong(&format!("must be at most {} texts of 1 to {} bytes", STOPS.0, STOPS.1));
        }
        Ok(stop)
    }

    /// Refuses what would change the answer and is not supported; `harmless` are the values that change nothing.
    pub(super) fn refuse(&mut self, name: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless.contains(&value) => Err(ApiError::field(name, "is not supported by this server")),
            _ => Ok(()),
        }
    }
}

/// What a request asks for, besides its text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    /// Name of the model.
    pub(super) model: String,
    /// How tokens are chosen. The texts of a request have seeds that follow each other.
    pub(super) sampling: Sampling,
    /// Most new tokens, if the request says.
    pub(super) max_new_tokens: Option<usize>,
    /// Texts that end the answer.
    pub(super) stop: Vec<String>,
    /// Answers to each prompt.
    pub(super) n: usize,
    /// Whether pieces are wanted as they come.
    pub(super) stream: bool,
    /// Whether a streamed answer ends with its counts.
    pub(super) include_usage: bool,
}

impl Parameters {
    /// Takes them out of a request.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(super) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.text("model")?.ok_or_else(|| ApiError::field("model", "is missing"))?;
        let zero = [Value::from(0), Value::from(0.0)];
        for (name, harmless) in [
            ("frequency_penalty", zero.as_slice()),
            ("presence_penalty", &zero),
            ("logit_bias", &[Value::Object(Map::new())]),
            ("best_of", &[Value::from(1)]),
        ] {
            fields.refuse(name, harmless)?;
        }
        let (old, new) =
            (fields.whole("max_tokens", 1, u64::MAX)?, fields.whole("max_completion_tokens", 1, u64::MAX)?);
        // As OpenAI does it, and not as `petals-tune generate`: who says nothing gets samples at temperature 1.
        let sampling = Sampling {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            top_k: fields.whole("top_k", 0, u64::MAX)?.unwrap_or(0) as usize,
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(1.0),
            seed: match fields.take("seed") {
                None => rand::random(),
                Some(seed) => {
                    let signed = || seed.as_i64().map(i64::cast_unsigned);
                    let whole = seed.as_u64().or_else(signed);
                    whole.ok_or_else(|| ApiError::field("seed", "must be a whole number"))?
                }
            },
        };
        if sampling.top_p == 0.0 {
            return Err(ApiError::field("top_p", "must be above 0"));
        }
        let stream = fields.flag("stream")?;
        let include_usage = match fields.take("stream_options") {
            None => false,
            Some(Value::Object(_)) if !stream => {
                return Err(ApiError::field("stream_options", "is only allowed with `stream`"));
            }
            Some(Value::Object(options)) => options.get("include_usage").and_then(Value::as_bool).unwrap_or(false),
            Some(_) => return Err(ApiError::field("stream_options", "must be an object")),
        };
        Ok(Self {
            model,
            sampling,
            max_new_tokens: new.or(old).map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
            stop: fields.stop()?,
            n: fields.whole("n", 1, TEXTS)?.unwrap_or(1) as usize,
            stream,
            include_usage,
        })
    }

    /// How the `number`-th text of the request is sampled.
    pub(super) fn sampling(&self, number: usize) -> Sampling {
        Sampling { seed: self.sampling.seed.wrapping_add(number as u64), ..self.sampling }
    }
}
