//! Which path does what.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use petals_page::{state_answer, swarm_document};

use super::app::App;
use super::caller::Caller;
use super::error::ApiError;
use super::{chats, completions, embeddings, guard, messages, page, paths, responses, tokens};

/// The whole server.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/responses", post(respond))
        .route("/v1/responses/input_tokens", post(count_response))
        .route("/v1/responses/{id}", get(response).delete(forget))
        .route("/v1/messages", post(message))
        .route("/v1/messages/count_tokens", post(count_message))
        .route("/v1/embeddings", post(embed))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/metrics", get(metrics))
        .route("/api/v1/state", get(swarm_state))
        .route("/api/v1/route", get(route))
        .layer(middleware::from_fn_with_state(app.guard.clone(), guard::key));
    let routes = api
        .route("/", get(page::page))
        .route("/swarm", get(swarm_document))
        .route("/health", get(health))
        .route("/healthz", get(health))
        .route("/version", get(version))
        .method_not_allowed_fallback(|method: Method| async move { ApiError::unknown_method(&method) })
        .fallback(|uri: Uri| async move { ApiError::unknown_path(uri.path()) })
        .layer(middleware::from_fn_with_state(app.guard.clone(), guard::origin))
        .layer(middleware::from_fn(messages::errors::form))
        .with_state(app);
    // In front of the routes: which one it is depends on the path that is meant.
    Router::new().fallback_service(routes).layer(middleware::map_request(paths::meant))
}

async fn models(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let list = if messages::is_client(&headers) { app.models.list_for_anthropic() } else { app.models.list() };
    json(list.to_string())
}

async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let model = app.models.find(&name)?;
    let told = if messages::is_client(&headers) {
        app.models.describe_for_anthropic(&model)
    } else {
        app.models.describe(&model)
    };
    Ok(json(told.to_string()))
}

async fn complete(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "completions");
    let answer = async {
        let caller = Caller::of(&request);
        let (body, _weight) = guard::body(&app.guard, request).await?;
        completions::complete(&app, (caller, body), &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "chat");
    let answer = async {
        let caller = Caller::of(&request);
        let (body, _weight) = guard::body(&app.guard, request).await?;
        chats::complete(&app, (caller, body), &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn respond(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "responses");
    let answer = async {
        let caller = Caller::of(&request);
        let (body, _weight) = guard::body(&app.guard, request).await?;
        responses::create(&app, (caller, body), &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn count_response(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "input_tokens");
    let answer = async {
        let (body, _weight) = guard::body(&app.guard, request).await?;
        responses::count(&app, body, &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn response(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    if query.is_some_and(|query| query.split('&').any(|option| option == "stream=true")) {
        return Err(ApiError::field("stream", "is not supported for an answer that is complete: read it as a whole"));
    }
    responses::get(&app, &id)
}

async fn forget(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    responses::delete(&app, &id)
}

async fn message(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "messages");
    let answer = async {
        let caller = Caller::of(&request);
        let (body, _weight) = guard::body(&app.guard, request).await?;
        messages::create(&app, (caller, body), &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn count_message(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "count_tokens");
    let answer = async {
        let (body, _weight) = guard::body(&app.guard, request).await?;
        messages::count(&app, body, &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn embed(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut count = Count::new(&app, "embeddings");
    let answer = async {
        let (body, _weight) = guard::body(&app.guard, request).await?;
        embeddings::embed(&app, body, &mut count.model).await
    };
    let answer = answer.await;
    count.answered(&answer);
    answer
}

async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (body, _weight) = guard::body(&app.guard, request).await?;
    tokens::tokenize(&app, body).await
}

async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (body, _weight) = guard::body(&app.guard, request).await?;
    tokens::detokenize(&app, body).await
}

async fn tokenizer_info(State(app): State<Arc<App>>) -> Response {
    json(tokens::info(&app).to_string())
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], app.engine.render_metrics())
        .into_response()
}

async fn swarm_state(State(app): State<Arc<App>>) -> Response {
    state_answer(&app.swarm)
}

/// The way of the latest text.
async fn route(State(app): State<Arc<App>>) -> Response {
    json(serde_json::to_string(&app.engine.route()).unwrap_or_else(|_| "null".to_owned()))
}

async fn health() -> Response {
    json(r#"{"status":"ok"}"#.to_owned())
}

async fn version() -> Response {
    json(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }).to_string())
}

fn json(body: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], Bytes::from(body)).into_response()
}

/// Counts a request when it is answered; or when it is dropped without, since the client left.
struct Count<'a> {
    app: &'a App,
    endpoint: &'static str,
    /// The model, once it is known to be served: strangers' names would fill the memory.
    model: String,
    status: u16,
}

impl<'a> Count<'a> {
    fn new(app: &'a App, endpoint: &'static str) -> Self {
        Self { app, endpoint, model: String::new(), status: 499 }
    }

    fn answered(&mut self, answer: &Result<Response, ApiError>) {
        self.status = answer.as_ref().map_or_else(ApiError::status, Response::status).as_u16();
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.app.engine.metrics().request(&self.model, self.endpoint, self.status);
    }
}
