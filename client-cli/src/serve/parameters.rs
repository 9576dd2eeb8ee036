//! The fields of a request that both kinds of completion have.

use std::sync::Arc;

use petals_client::Sampling;
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::forms;
use super::grammar::Form;

/// Most answers to a prompt.
const ANSWERS: u64 = 128;
/// Most stop strings of a request, and bytes of each.
const STOPS: (usize, usize) = (16, 256);
/// Most tokens whose probabilities are told for each place.
pub(super) const TOP: u64 = 20;

/// What a request asks for, besides its text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    /// Name of the model; empty if the request names none.
    pub(super) model: String,
    /// How tokens are chosen. The texts of a request have seeds that follow each other.
    pub(super) sampling: Sampling,
    /// Most new tokens, if the request says; [`usize::MAX`] for as many as there is room for.
    pub(super) max_new_tokens: Option<usize>,
    /// Texts that end the answer.
    pub(super) stop: Vec<String>,
    /// Tokens that end the answer, besides the model's own.
    pub(super) stop_tokens: Vec<u32>,
    /// Whether the model's own end tokens do not end it.
    pub(super) ignore_eos: bool,
    /// What the answer must be like.
    pub(super) form: Option<Form>,
    /// Answers to each prompt.
    pub(super) n: usize,
    /// Whether pieces are wanted as they come.
    pub(super) stream: bool,
    /// Whether a streamed answer ends with its counts.
    pub(super) include_usage: bool,
}

impl Parameters {
    /// Takes them out of a request to a model of `vocabulary` tokens, which may ask for `least` new ones at least.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(super) fn take(fields: &mut Fields, vocabulary: usize, least: u64) -> Result<Self, ApiError> {
        let model = fields.text("model")?.unwrap_or_default();
        let form = forms::take(fields)?;
        fields.refuse("use_beam_search", &[Value::Bool(false)])?;
        fields.refuse("prompt_logprobs", &[])?;
        let (old, new) = (tokens(fields, "max_tokens", least)?, tokens(fields, "max_completion_tokens", least)?);
        let top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
        // As OpenAI does it, and not as `petals-tune generate`: who says nothing gets samples at temperature 1.
        let temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
        let sampling = Sampling {
            // The fewest tokens that reach a probability of 0: the most probable one.
            temperature: if top_p == 0.0 { 0.0 } else { temperature },
            top_p: if top_p == 0.0 { 1.0 } else { top_p },
            // -1 is vLLM's word for all of them.
            top_k: fields.whole("top_k", -1, i64::MAX)?.map_or(0, |top| usize::try_from(top).unwrap_or(0)),
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(1.0),
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields, vocabulary)?,
            constraint: None,
            seed: seed(fields)?.unwrap_or_else(rand::random),
        };
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
            max_new_tokens: new.or(old),
            stop: stop(fields)?,
            stop_tokens: match fields.take("stop_token_ids") {
                None => Vec::new(),
                Some(Value::Array(ids)) => token_ids("stop_token_ids", &ids, vocabulary)?,
                Some(_) => return Err(ApiError::field("stop_token_ids", "must be a list of token ids")),
            },
            ignore_eos: fields.flag("ignore_eos")?,
            form,
            n: fields.whole("n", 1, ANSWERS as i64)?.unwrap_or(1) as usize,
            stream,
            include_usage,
        })
    }

    /// How the `number`-th text of the request is sampled.
    pub(super) fn sampling(&self, number: usize) -> Sampling {
        Sampling { seed: self.sampling.seed.wrapping_add(number as u64), ..self.sampling.clone() }
    }
}

/// A number of tokens; -1 is as many as there is room for.
fn tokens(fields: &mut Fields, name: &str, least: u64) -> Result<Option<usize>, ApiError> {
    match fields.whole(name, -1, i64::MAX)? {
        None => Ok(None),
        Some(-1) => Ok(Some(usize::MAX)),
        Some(number) if number >= least as i64 => Ok(Some(usize::try_from(number).unwrap_or(usize::MAX))),
        Some(_) => Err(ApiError::field(name, format!("must be at least {least}, or -1 for no limit"))),
    }
}

/// Any number is a seed.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(seed) = fields.take("seed") else { return Ok(None) };
    let whole = seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
    let fraction = || {
        let number = seed.as_f64()?;
        // 7.0 is 7, in languages that have one kind of number.
        Some(if number.fract() == 0.0 && number.abs() < 9e18 {
            (number as i64).cast_unsigned()
        } else {
            number.to_bits()
        })
    };
    whole.or_else(fraction).map(Some).ok_or_else(|| ApiError::field("seed", "must be a number"))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wrong = |message: &str| Err(ApiError::field("stop", message));
    let mut stop = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => match list.iter().map(|value| value.as_str().map(str::to_owned)).collect() {
            Some(texts) => texts,
            None => return wrong("must be a text or a list of texts"),
        },
        Some(_) => return wrong("must be a text or a list of texts"),
    };
    // Forms of clients send fields that nobody filled in. An empty text would end every answer before it begins.
    stop.retain(|text| !text.is_empty());
    if stop.len() > STOPS.0 || stop.iter().any(|text| text.len() > STOPS.1) {
        return wrong(&format!("must be at most {} texts of at most {} bytes", STOPS.0, STOPS.1));
    }
    Ok(stop)
}

/// Token ids with what is added to their logits.
fn logit_bias(fields: &mut Fields, vocabulary: usize) -> Result<Arc<[(u32, f32)]>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Arc::default()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(ApiError::field("logit_bias", "must be an object of token ids and numbers")),
    };
    let entry = |(id, bias): (&String, &Value)| {
        let token = id.trim().parse::<u32>().ok().filter(|&token| (token as usize) < vocabulary);
        let token = token.ok_or_else(|| {
            ApiError::field("logit_bias", format!("has {id:?}, which is no token id below {vocabulary}"))
        })?;
        let bias = bias.as_f64().ok_or_else(|| {
            ApiError::field("logit_bias", format!("has something for token {id} that is no number from -100 to 100"))
        })?;
        // vLLM does so too.
        Ok((token, bias.clamp(-100.0, 100.0) as f32))
    };
    map.iter().map(entry).collect()
}

/// Ids of tokens that exist.
pub(super) fn token_ids(field: &str, ids: &[Value], vocabulary: usize) -> Result<Vec<u32>, ApiError> {
    let token = |id: &Value| {
        let known = id.as_u64().filter(|&id| id < vocabulary as u64).and_then(|id| u32::try_from(id).ok());
        known.ok_or_else(|| ApiError::field(field, format!("has {id}, which is no token of {vocabulary}")))
    };
    ids.iter().map(token).collect()
}
