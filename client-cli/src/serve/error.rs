//! Refusals in OpenAI's form.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use petals_client::GenerationError;
use serde_json::{Value, json};

/// Characters of a wrong path that are shown.
const PATH: usize = 100;

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    /// The field of the request that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
    /// Tokens of a prompt that is too long, and how many there may be.
    excess: Option<(usize, usize)>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, excess: None }
    }

    /// The request is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request is wrong.
    pub(super) fn field(name: impl Into<String>, message: impl Into<String>) -> Self {
        let name = name.into();
        Self { message: format!("`{name}` {}", message.into()), param: Some(name), ..Self::invalid("") }
    }

    /// A prompt of so many tokens, given by the field `name`, does not fit into the model, or leaves no room for `least` more. In OpenAI's
    /// words: clients look for the numbers in them.
    pub(super) fn too_long(name: &str, tokens: usize, room: usize, least: usize) -> Self {
        let behind = if tokens <= room { format!(" with room for {least} more") } else { String::new() };
        let message = format!(
            "This model's maximum context length is {room} tokens{behind}. However, your {name} resulted in {tokens} tokens. \
             Please reduce the length of the {name}."
        );
        let excess = Some((tokens, room.saturating_sub(if tokens <= room { least } else { 0 })));
        Self { code: Some("context_length_exceeded"), param: Some(name.to_owned()), excess, ..Self::invalid(message) }
    }

    /// No key, or a wrong one.
    pub(super) fn unauthorized() -> Self {
        let message = "this server needs its API key, as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// Not for this client.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// No such model.
    pub(super) fn unknown_model(name: &str, known: &[&str]) -> Self {
        let message = format!("the model {name:?} is not served here; these are: {}", known.join(", "));
        let param = Some("model".to_owned());
        Self { param, code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    /// No such path.
    pub(super) fn unknown_path(path: &str) -> Self {
        let path: String = path.chars().take(PATH).collect();
        let message = format!(
            "there is no endpoint {path}; see /v1/models, /v1/completions, /v1/chat/completions, /v1/responses, /v1/messages, \
             /v1/embeddings"
        );
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The path is there, but not with this method.
    pub(super) fn unknown_method(method: &Method) -> Self {
        let message = format!(
            "this endpoint does not answer to {method}: models are read with GET, everything that is generated is asked for with POST"
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, message)
    }

    /// More bytes than allowed.
    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request has more than {limit} bytes"))
    }

    /// A request that becomes more than is there for one once it is read.
    pub(super) fn too_many_parts(bytes: usize, limit: usize) -> Self {
        let message = format!(
            "the request has too many fields and entries: it would take {} MiB in memory, {} MiB are allowed",
            bytes >> 20,
            limit >> 20
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// Not JSON, by its own account. Browsers send other types to foreign servers without asking.
    pub(super) fn not_json() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the request with `Content-Type: application/json`")
    }

    /// Packed in a way that is not known here.
    pub(super) fn unknown_encoding(encoding: &str) -> Self {
        let message = format!(
            "the request has `Content-Encoding: {encoding}`: gzip and deflate are understood, or send it as it is, without the header"
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// The request did not arrive in time.
    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")
    }

    /// Too many requests wait already.
    pub(super) fn queue_full() -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too many requests wait already, try again later");
        Self { code: Some("rate_limit_exceeded"), ..error }
    }

    /// Waited too long, or the server is about to stop.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// What should not happen.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// A generation that failed: the swarm's fault, unless the text is at fault.
    pub(super) fn of_generation(error: GenerationError) -> Self {
        let message = format!("{:#}", anyhow::Error::new(error));
        Self::new(StatusCode::BAD_GATEWAY, message.replace('\n', " "))
    }

    /// There is nothing of this name.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The same with a code for programs.
    pub(super) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same with names of fields as another interface has them, each with the name that it has here in front. A name with a dot in
    /// front may stand anywhere, the others at the beginning.
    pub(super) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let Some(here) = self.param.take() else { return self };
        let mut there = here.clone();
        for (old, new) in names {
            if old.starts_with('.') {
                there = there.replace(old, new);
            } else if let Some(rest) = there.strip_prefix(old)
                && (rest.is_empty() || rest.starts_with(['.', '[']))
            {
                there = format!("{new}{rest}");
            }
        }
        self.message = self.message.replace(&format!("`{here}`"), &format!("`{there}`"));
        self.param = Some(there);
        self
    }

    /// What is wrong.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Tokens of a prompt that is too long, and how many there may be.
    pub(super) fn excess(&self) -> Option<(usize, usize)> {
        self.excess
    }

    /// The status, for the figures.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The body, `{"error": …}`.
    pub(super) fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        // For interfaces that tell errors in another form.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
