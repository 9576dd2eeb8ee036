//! `/v1/chat/completions`: a conversation, answered. What other interfaces call a conversation is answered here as well, once it is
//! written as a request to this one.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::Value;
use tokio::sync::mpsc;

use super::app::{App, blocking};
use super::caller::Caller;
use super::conversation;
use super::engine::{Job, Plan, Progress};
use super::error::ApiError;
use super::fields::Fields;
use super::parameters::{Parameters, TOP};
use super::refused;
use super::reply::{Chunks, Kind, Reply, Shape};
use super::room::room;
use super::tools::Tools;
use crate::chat::Conversation;

/// Fields that say how tokens are chosen. They have one name and one meaning in all interfaces.
pub(super) const SAMPLING: [&str; 14] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop_token_ids",
    "ignore_eos",
    "guided_choice",
    "chat_template_kwargs",
    "enable_thinking",
];

/// An answer that is being generated.
#[derive(Debug)]
pub(super) struct Begun {
    /// The model, by the name under which it is served.
    pub(super) model: String,
    /// What it is to be like.
    pub(super) shape: Shape,
    /// What happens to its texts.
    pub(super) receiver: mpsc::Receiver<(usize, Progress)>,
    /// Whether it is wanted in pieces.
    pub(super) stream: bool,
    /// Whether a stream is to end with its counts.
    pub(super) include_usage: bool,
}

/// Answers a request; `model` is the model that it names.
pub(super) async fn complete(
    app: &Arc<App>,
    (caller, body): (Caller, Bytes),
    model: &mut String,
) -> Result<Response, ApiError> {
    let Begun { model, shape, receiver, stream, include_usage } = begin(app, (caller, body), model).await?;
    Reply::new(Chunks::new(Kind::Chat, model, include_usage), shape, receiver).tell(stream).await
}

/// Counts the tokens of a request's prompt, with those that its answer is made to begin with.
pub(super) async fn count(app: &Arc<App>, body: Bytes, model: &mut String) -> Result<usize, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let name = fields.text("model")?.unwrap_or_default();
    model.clone_from(&app.models.find(&name)?.name);
    let tools = Tools::take(&mut fields, app.tool_format)?;
    let conversation = conversation::take(&mut fields, &body, tools.told, app.tool_format)?;
    let opening = tools.reading.map(|reading| reading.opening).unwrap_or_default();
    Ok(prompt(app, conversation, opening).await?.len())
}

/// Begins to answer a request; `model` is the model that it names.
///
/// # Errors
/// 400, 404, and what [`Engine::start`](super::engine::Engine::start) refuses.
pub(super) async fn begin(
    app: &Arc<App>,
    (caller, body): (Caller, Bytes),
    model: &mut String,
) -> Result<Begun, ApiError> {
    let arrived = Instant::now();
    let mut fields = Fields::parse(&body)?;
    let parameters = Parameters::take(&mut fields, app.engine.vocabulary(), 1)?;
    let served = app.models.find(&parameters.model)?;
    model.clone_from(&served.name);
    refused::refuse(&mut fields)?;
    fields.refuse("modalities", &[Value::from(vec!["text"])])?;
    fields.refuse("best_of", &[Value::from(1), Value::from(parameters.n)])?;
    let logprobs = logprobs(&mut fields)?;
    let Tools { told, reading, form } = Tools::take(&mut fields, app.tool_format)?;
    let must = reading.as_ref().is_some_and(|reading| !reading.opening.is_empty());
    // Where the mark of calls is a special token, it would not be seen in the text.
    let mark = reading.as_ref().and_then(|reading| {
        let token = app.engine.pieces().token(reading.mark())?;
        app.engine.pieces().is_hidden(token).then(|| (token, reading.mark().to_owned()))
    });
    let form = match parameters.form.clone() {
        Some(other) if must => {
            let message = format!("cannot be met together with `{}`: leave one of them out", other.field);
            return Err(ApiError::field("tool_choice", message));
        }
        Some(other) => Some(other),
        // Forms are found in text.
        None => form.filter(|_| must || mark.is_none()),
    };
    let conversation = conversation::take(&mut fields, &body, told, app.tool_format)?;
    drop(body);
    let grammar = app.engine.grammar(form).await?;
    let reading = reading.map(Arc::new);
    let opening = reading.as_ref().map(|reading| reading.opening.clone()).unwrap_or_default();
    let prompt = Arc::new(prompt(app, conversation, opening).await?);
    let max_new_tokens =
        room(app, &served, parameters.max_new_tokens, prompt.len(), "messages", app.default_new_tokens)?;
    let plan = Arc::new(Plan {
        model: served.clone(),
        caller,
        stop: parameters.stop.clone(),
        stop_tokens: app.engine.stop_tokens(&parameters),
        conversation: true,
        arrived,
        logprobs,
        prompt_logprobs: None,
        grammar,
        marks: mark.into_iter().collect(),
    });
    let jobs = (0..parameters.n).map(|number| Job {
        number,
        plan: plan.clone(),
        prompt: prompt.clone(),
        sampling: parameters.sampling(number),
        max_new_tokens,
    });
    let shape = Shape {
        kind: Kind::Chat,
        prompts: 1,
        prompt_tokens: prompt.len(),
        echo: None,
        each: parameters.n,
        shown: parameters.n,
        logprobs: logprobs.is_some(),
        reading,
        pieces: app.engine.pieces().clone(),
    };
    let receiver = app.engine.start(jobs.collect()).await?;
    let Parameters { stream, include_usage, .. } = parameters;
    Ok(Begun { model: served.name.clone(), shape, receiver, stream, include_usage })
}

/// The tokens of a conversation, and of what the answer must begin with.
pub(super) async fn prompt(app: &Arc<App>, conversation: Conversation, opening: String) -> Result<Vec<u32>, ApiError> {
    let (app, tokenizer) = (app.clone(), app.engine.tokenizer().clone());
    let prompt = blocking(move || {
        let wrong = |error: &dyn std::fmt::Display| ApiError::field("messages", format!("cannot be used: {error}"));
        let template = app.template.as_ref().map_err(|missing| ApiError::invalid(missing.clone()))?;
        let text = template.render_conversation(&conversation).map_err(|error| wrong(&error))?;
        // Special tokens are in the template.
        tokenizer.encode_continuation(&(text + &opening)).map_err(|error| wrong(&error))
    });
    prompt.await
}

/// How many of the most probable tokens are wanted.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    match fields.whole("top_logprobs", 0, TOP as i64)? {
        Some(1..) if !wanted => Err(ApiError::field("top_logprobs", "needs `logprobs` to be true")),
        top => Ok(wanted.then_some(top.unwrap_or(0) as usize)),
    }
}
