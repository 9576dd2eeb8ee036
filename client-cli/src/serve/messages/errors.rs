//! Errors as Anthropic's clients read them.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::reply::new_id;
use super::is_client;

/// The paths of this interface begin so.
const PATH: &str = "/v1/messages";
/// Its status for a server that has too much to do.
const OVERLOADED: u16 = 529;

/// Gives answers to Anthropic's clients an identifier, and errors their form, wherever in this server they come from.
pub(in super::super) async fn form(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let ours = path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let ours = ours || is_client(request.headers());
    let mut response = next.run(request).await;
    if !ours {
        return response;
    }
    let id = new_id("req_");
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.status_mut() = status(&error);
        *response.body_mut() = Body::from(body(&error, Some(&id)).to_string());
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("request-id", id);
    }
    response
}

fn status(error: &ApiError) -> StatusCode {
    match error.status() {
        StatusCode::SERVICE_UNAVAILABLE => StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        other => other,
    }
}

/// The body of an error.
pub(super) fn body(error: &ApiError, request: Option<&str>) -> Value {
    let kind = match error.status() {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    let message = match error.excess() {
        // Clients look for these words, and make the conversation shorter.
        Some((tokens, room)) => format!("prompt is too long: {tokens} tokens > {room} maximum"),
        None => error.message().to_owned(),
    };
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": request })
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::*;

    #[test]
    fn errors_have_anthropics_words() {
        let told = |error: ApiError| {
            let body = body(&error, Some("req_1"));
            assert_eq!((&body["type"], &body["request_id"]), (&json!("error"), &json!("req_1")));
            (status(&error).as_u16(), body["error"]["type"].as_str().unwrap_or_default().to_owned())
        };
        for (error, expected, kind) in [
            (ApiError::field("model", "is missing"), 400, "invalid_request_error"),
            (ApiError::unauthorized(), 401, "authentication_error"),
            (ApiError::forbidden("no"), 403, "permission_error"),
            (ApiError::unknown_model("x", &["m"]), 404, "not_found_error"),
            (ApiError::unknown_method(&Method::GET), 405, "invalid_request_error"),
            (ApiError::not_json(), 415, "invalid_request_error"),
            (ApiError::too_large(5), 413, "request_too_large"),
            (ApiError::queue_full(), 429, "rate_limit_error"),
            (ApiError::internal("x"), 500, "api_error"),
            (ApiError::unavailable("wait"), 529, "overloaded_error"),
        ] {
            assert_eq!(told(error), (expected, kind.to_owned()));
        }
        let long = body(&ApiError::too_long("messages", 600, 512, 1), None);
        assert_eq!(long["error"]["message"], "prompt is too long: 600 tokens > 512 maximum");
        let full = body(&ApiError::too_long("messages", 512, 512, 1), None);
        assert_eq!(full["error"]["message"], "prompt is too long: 512 tokens > 511 maximum");
    }
}
