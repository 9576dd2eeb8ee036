//! `/v1/completions`: a text, continued.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::Value;

use super::app::{App, blocking};
use super::caller::Caller;
use super::engine::{Job, Plan};
use super::error::ApiError;
use super::fields::Fields;
use super::parameters::{Parameters, TOP};
use super::prompts::{Prompt, prompts};
use super::refused;
use super::reply::{Chunks, Kind, Reply, Shape};
use super::room::room;

/// Tokens that a completion gets which asks for no number, as with OpenAI.
const DEFAULT_TOKENS: usize = 16;
/// Most texts of a request: prompts times answers to each. They are generated a few at a time.
const TEXTS: usize = 16_384;

/// What completions have of their own.
struct Extras {
    echo: bool,
    /// How many of the most probable tokens are wanted.
    logprobs: Option<usize>,
    /// Texts that are generated for each prompt.
    best_of: usize,
}

impl Extras {
    fn take(fields: &mut Fields, parameters: &Parameters) -> Result<Self, ApiError> {
        fields.refuse("suffix", &[Value::from("")])?;
        let logprobs = match fields.take("logprobs") {
            None | Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(1),
            Some(Value::Number(number)) => {
                let top = number.as_f64().filter(|top| top.fract() == 0.0 && (0.0..=TOP as f64).contains(top));
                Some(top.ok_or_else(|| ApiError::field("logprobs", format!("must be from 0 to {TOP}")))? as usize)
            }
            Some(_) => return Err(ApiError::field("logprobs", format!("must be a whole number from 0 to {TOP}"))),
        };
        let best_of = fields.whole("best_of", 1, 128)?.map_or(parameters.n, |best| best as usize);
        if best_of < parameters.n {
            return Err(ApiError::field("best_of", format!("must be at least `n`, which is {}", parameters.n)));
        }
        if best_of > parameters.n && parameters.stream {
            return Err(ApiError::field("best_of", "cannot be above `n` with `stream`: all texts must be there first"));
        }
        Ok(Self { echo: fields.flag("echo")?, logprobs, best_of })
    }
}

/// Answers a request; `model` is the model that it names.
pub(super) async fn complete(
    app: &Arc<App>,
    (caller, body): (Caller, Bytes),
    model: &mut String,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut fields = Fields::parse(&body)?;
    drop(body);
    let vocabulary = app.engine.vocabulary();
    let parameters = Parameters::take(&mut fields, vocabulary, 0)?;
    let served = app.models.find(&parameters.model)?;
    model.clone_from(&served.name);
    refused::refuse(&mut fields)?;
    let Extras { echo, logprobs, best_of } = Extras::take(&mut fields, &parameters)?;
    let special = fields.choice("add_special_tokens")?.unwrap_or(true);
    let prompts = prompts(fields.take("prompt"), "prompt", vocabulary)?;
    if prompts.len() * best_of > TEXTS {
        let message = format!("asks for {} texts with `n` or `best_of`, {TEXTS} are allowed", prompts.len() * best_of);
        return Err(ApiError::field("prompt", message));
    }
    let tokenizer = app.engine.tokenizer().clone();
    let encoded = blocking(move || {
        let encode = |prompt: Prompt| prompt.encode(&tokenizer, "prompt", special, echo);
        prompts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
    });
    let encoded = encoded.await?;
    let plan = Arc::new(Plan {
        model: served.clone(),
        caller,
        stop: parameters.stop.clone(),
        stop_tokens: app.engine.stop_tokens(&parameters),
        conversation: false,
        arrived,
        // To find the best texts their probabilities are needed.
        logprobs: logprobs.or_else(|| (best_of > parameters.n).then_some(0)),
        prompt_logprobs: logprobs.filter(|_| echo),
        grammar: app.engine.grammar(parameters.form.clone()).await?,
        marks: Vec::new(),
    });
    let mut jobs = Vec::new();
    for (_, prompt) in &encoded {
        let max_new_tokens = room(app, &served, parameters.max_new_tokens, prompt.len(), "prompt", DEFAULT_TOKENS)?;
        for _ in 0..best_of {
            let number = jobs.len();
            let sampling = parameters.sampling(number);
            jobs.push(Job { number, plan: plan.clone(), prompt: prompt.clone(), sampling, max_new_tokens });
        }
    }
    let shape = Shape {
        kind: Kind::Completion,
        prompts: encoded.len(),
        prompt_tokens: encoded.iter().map(|(_, tokens)| tokens.len()).sum(),
        echo: echo.then_some(encoded),
        each: best_of,
        shown: parameters.n,
        logprobs: logprobs.is_some(),
        reading: None,
        pieces: app.engine.pieces().clone(),
    };
    let receiver = app.engine.start(jobs).await?;
    let face = Chunks::new(Kind::Completion, served.name.clone(), parameters.include_usage);
    Reply::new(face, shape, receiver).tell(parameters.stream).await
}
