//! `/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::app::{App, blocking};
use super::error::ApiError;
use super::fields::Fields;
use super::models::ServedModel;
use super::parameters::token_ids;
use super::tools::Tools;
use super::{chats, conversation};
use crate::chat::ChatTemplate;

/// The tokens of a text, or of a conversation.
pub(super) async fn tokenize(app: &Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let model = model(app, &mut fields)?;
    let names = fields.flag("return_token_strs")?;
    let special = fields.choice("add_special_tokens")?;
    let tokens = match fields.text("prompt")? {
        Some(text) => {
            let tokenizer = app.engine.tokenizer().clone();
            let tokens = blocking(move || {
                let tokens = if special.unwrap_or(true) {
                    tokenizer.encode(&text)
                } else {
                    tokenizer.encode_continuation(&text)
                };
                tokens.map_err(|error| ApiError::field("prompt", format!("cannot be used: {error}")))
            });
            tokens.await?
        }
        None => {
            if special == Some(true) {
                return Err(ApiError::field(
                    "add_special_tokens",
                    "must be false for `messages`: the template has them",
                ));
            }
            let tools = Tools::take(&mut fields, app.tool_format)?;
            let conversation = conversation::take(&mut fields, &body, tools.told, app.tool_format)?;
            chats::prompt(app, conversation, String::new()).await?
        }
    };
    let names = names.then(|| tokens.iter().map(|&token| app.engine.pieces().name(token)).collect::<Vec<_>>());
    answer(&json!({ "count": tokens.len(), "max_model_len": model.room, "tokens": tokens, "token_strs": names }))
}

/// The text of tokens.
pub(super) async fn detokenize(app: &Arc<App>, body: Bytes) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    drop(body);
    model(app, &mut fields)?;
    let tokens = match fields.take("tokens") {
        Some(Value::Array(ids)) => token_ids("tokens", &ids, app.engine.vocabulary())?,
        _ => return Err(ApiError::field("tokens", "must be a list of token ids")),
    };
    let pieces = app.engine.pieces().clone();
    let text = blocking(move || {
        pieces.decode(&tokens).map_err(|error| ApiError::field("tokens", format!("cannot be used: {error}")))
    });
    answer(&json!({ "prompt": text.await? }))
}

/// What clients that have no files of the model want to know of its tokenizer, as vLLM tells it.
pub(super) fn info(app: &App) -> Value {
    let mut info = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": app.template.as_ref().ok().map(ChatTemplate::source),
        "model_max_length": app.models.find("").ok().map(|model| model.room),
    });
    for (role, name) in app.engine.tokenizer().roles() {
        info[*role] = name.as_str().into();
    }
    info
}

/// The model that a request names; the one without adapters if it names none.
fn model(app: &App, fields: &mut Fields) -> Result<Arc<ServedModel>, ApiError> {
    app.models.find(&fields.text("model")?.unwrap_or_default())
}

fn answer(body: &Value) -> Result<Response, ApiError> {
    Ok(([(CONTENT_TYPE, "application/json")], body.to_string()).into_response())
}
