//! `/v1/responses`: OpenAI's newer interface, as another way to say what a chat is.
//!
//! | file | subject |
//! |---|---|
//! | `request` | the fields of a request |
//! | `items`, `tools` | what stands in them |
//! | `output` | the answer, whole and as events |

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::app::App;
use super::caller::Caller;
use super::chats;
use super::error::ApiError;
use super::fields::Fields;
use super::reply::Reply;
use output::Output;
use request::{Asked, reworded};

mod items;
mod output;
mod request;
mod tools;

/// Answers a request; `model` is the model that it names.
pub(super) async fn create(
    app: &Arc<App>,
    (caller, body): (Caller, Bytes),
    model: &mut String,
) -> Result<Response, ApiError> {
    let Asked { chat, mut repeated, items, store } = Asked::take(Fields::parse(&body)?, &app.kept)?;
    drop(body);
    let begun = chats::begin(app, (caller, Bytes::from(chat.to_string())), model).await.map_err(reworded)?;
    repeated.insert("model".to_owned(), begun.model.into());
    let face = Output::new(repeated, store.then(|| (app.clone(), items)));
    Reply::new(face, begun.shape, begun.receiver).tell(begun.stream).await
}

/// Counts the tokens of a request; `model` is the model that it names.
pub(super) async fn count(app: &Arc<App>, body: Bytes, model: &mut String) -> Result<Response, ApiError> {
    let asked = Asked::take(Fields::parse(&body)?, &app.kept)?;
    let tokens = chats::count(app, Bytes::from(asked.chat.to_string()), model).await.map_err(reworded)?;
    Ok(answer(&json!({ "object": "response.input_tokens", "input_tokens": tokens })))
}

/// An answer that is kept.
pub(super) fn get(app: &App, id: &str) -> Result<Response, ApiError> {
    app.kept.find(id).map(|entry| answer(&entry.response)).ok_or_else(|| not_found(id))
}

/// Forgets an answer that is kept.
pub(super) fn delete(app: &App, id: &str) -> Result<Response, ApiError> {
    if !app.kept.remove(id) {
        return Err(not_found(id));
    }
    Ok(answer(&json!({ "id": id, "object": "response", "deleted": true })))
}

fn not_found(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no response {id:?} here: only the latest ones are kept, in memory"))
}

fn answer(body: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
