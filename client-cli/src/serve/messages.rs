//! `/v1/messages`: Anthropic's interface, as another way to say what a chat is.
//!
//! | file | subject |
//! |---|---|
//! | `request`, `blocks` | the fields of a request, and what stands in its messages |
//! | `output` | the answer, whole and as events |
//! | `errors` | errors in Anthropic's form |

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::app::App;
use super::caller::Caller;
use super::chats;
use super::error::ApiError;
use super::fields::Fields;
use super::reply::Reply;
use output::Output;
use request::{chat, reworded};

mod blocks;
pub(super) mod errors;
mod output;
mod request;

/// Whether a request comes from one of Anthropic's clients: they send a version with each.
pub(super) fn is_client(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// Answers a request; `model` is the model that it names.
pub(super) async fn create(
    app: &Arc<App>,
    (caller, body): (Caller, Bytes),
    model: &mut String,
) -> Result<Response, ApiError> {
    let chat = chat(Fields::parse(&body)?, false)?;
    drop(body);
    let begun = chats::begin(app, (caller, Bytes::from(chat.to_string())), model).await.map_err(reworded)?;
    let face = Output::new(begun.model, begun.shape.prompt_tokens);
    Reply::new(face, begun.shape, begun.receiver).tell(begun.stream).await
}

/// Counts the tokens of a request; `model` is the model that it names.
pub(super) async fn count(app: &Arc<App>, body: Bytes, model: &mut String) -> Result<Response, ApiError> {
    let chat = chat(Fields::parse(&body)?, true)?;
    let tokens = chats::count(app, Bytes::from(chat.to_string()), model).await.map_err(reworded)?;
    Ok(([(CONTENT_TYPE, "application/json")], json!({ "input_tokens": tokens }).to_string()).into_response())
}
