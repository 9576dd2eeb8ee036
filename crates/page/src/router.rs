//! Which path shows what.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::document::document;
use super::guard::{Key, is_meant};
use super::shown::SwarmPage;

/// The page. Everything that it needs is in it.
const PAGE: &str = include_str!("swarm.html");
/// What Prometheus calls the text that `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whose requests are answered.
#[derive(Debug, Default)]
pub struct Rules {
    /// The key that is needed for everything but the empty page and the two questions of health.
    pub key: Option<Key>,
    /// If the page listens on this machine alone: names besides `localhost` that it may be called by.
    pub hosts: Option<Vec<String>>,
}

/// The page of a swarm, at `/`, with what it is made of beside it.
pub fn router(page: Arc<SwarmPage>, rules: Rules) -> Router {
    let rules = Arc::new(rules);
    let told = Router::new()
        .route("/api/v1/state", get(state))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(rules.clone(), key));
    told.route("/", get(swarm_document))
        .route("/healthz", get(|| async { text(StatusCode::OK, "ok\n".to_owned()) }))
        .route("/readyz", get(ready))
        .method_not_allowed_fallback(|| async {
            ([(ALLOW, "GET, HEAD")], error(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here")).into_response()
        })
        .fallback(|| async {
            error(StatusCode::NOT_FOUND, "there are /, /api/v1/state, /metrics, /healthz and /readyz")
        })
        .layer(middleware::from_fn_with_state(rules, meant))
        .with_state(page)
}

/// The page itself, for programs that show it beside other things; it gets `api/v1/state` from next to it.
pub async fn swarm_document() -> Response {
    document(PAGE)
}

/// What the page is made of.
pub fn state_answer(page: &SwarmPage) -> Response {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], page.state_json()).into_response()
}

async fn state(State(page): State<Arc<SwarmPage>>) -> Response {
    state_answer(&page)
}

async fn metrics(State(page): State<Arc<SwarmPage>>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], page.program().metrics()).into_response()
}

async fn ready(State(page): State<Arc<SwarmPage>>) -> Response {
    match page.program().ready() {
        Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Lets only those through who have the key.
async fn key(State(rules): State<Arc<Rules>>, request: Request, next: Next) -> Response {
    if rules.key.is_none_or(|key| key.is_borne(request.headers())) {
        return next.run(request).await;
    }
    let refused =
        error(StatusCode::UNAUTHORIZED, "the key is missing or wrong: send it as `Authorization: Bearer KEY`");
    ([(WWW_AUTHENTICATE, "Bearer")], refused).into_response()
}

/// Refuses what was meant for somebody else, and tells browsers to keep answers from pages of other origins.
async fn meant(State(rules): State<Arc<Rules>>, request: Request, next: Next) -> Response {
    let named = rules.hosts.as_ref().filter(|_| rules.key.is_none());
    let mut response = match named.is_none_or(|names| is_meant(request.headers(), names)) {
        true => next.run(request).await,
        false => error(
            StatusCode::FORBIDDEN,
            "this page is for its own machine: use http://127.0.0.1 or http://localhost, or set a key",
        ),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    response
}

fn text(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

fn error(status: StatusCode, message: &str) -> Response {
    let body = serde_json::json!({ "error": message }).to_string();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_words() {
        let foreign =
            ["http://", "https://", "src=", "@import", "url(", "innerHTML", "insertAdjacent", "document.write"];
        for foreign in foreign.into_iter().chain(["outerHTML", "eval(", "Function(", "style=\"", "onclick=", "href="]) {
            // The icon of nothing keeps browsers from asking for one.
            assert!(!PAGE.replace("href=\"data:,\"", "").contains(foreign), "{foreign}");
        }
        assert_eq!(PAGE.matches("nonce=\"NONCE\"").count(), PAGE.matches("NONCE").count());
    }
}
