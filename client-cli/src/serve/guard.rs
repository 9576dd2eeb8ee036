//! Who may use the server: API keys, browsers of other origins, sizes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, CONTENT_ENCODING, CONTENT_TYPE, ORIGIN, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use petals_page::{Key, Origin, Portion, Portions, is_meant};

use super::caller::{Caller, Callers};
use super::error::ApiError;
use super::unpack::unpack;
use super::weight::{Weight, Weights};

/// Where Anthropic's clients have the key.
const KEY_HEADER: &str = "x-api-key";
/// Longest time that a request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bodies of the largest size that may be arriving at a time. One address has three quarters of that at most.
const ARRIVING: usize = 16;
/// Pause before it is looked again whether there is memory for more of a body.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes beyond the limit that are read before the connection is cut.
const EXCESS: usize = 16 << 20;

/// The rules.
#[derive(Debug)]
pub(crate) struct Guard {
    /// None: anybody may use the server.
    keys: Vec<Key>,
    callers: Callers,
    origins: Vec<String>,
    request_bytes: usize,
    weights: Weights,
    /// Bytes of bodies that are arriving.
    arriving: Arc<Portions>,
    /// Names under which proxies and containers reach a server that listens on this machine alone; nothing if it does not.
    hosts: Option<Vec<String>>,
}

impl Guard {
    /// Rules: the keys of which clients need one, origins whose pages may use the server, the largest request, and, if only this machine reaches the
    /// server, the names besides `localhost` that it may be called by. With `together`, callers have what is left of each other's texts.
    pub(crate) fn new(
        keys: &[String],
        origins: Vec<String>,
        request_bytes: usize,
        hosts: Option<Vec<String>>,
        together: bool,
    ) -> Self {
        let keys = keys.iter().map(|key| Key::new(key)).collect();
        let (callers, weights) = (Callers::new(together), Weights::new(request_bytes));
        let arriving = Portions::new(request_bytes.saturating_mul(ARRIVING));
        Self { keys, callers, origins, request_bytes, weights, arriving, hosts }
    }

    /// Whose request it is, if it may be made.
    fn admits(&self, request: &Request) -> Option<Caller> {
        if self.keys.is_empty() {
            return Some(self.callers.by_address(request));
        }
        let headers = request.headers();
        // Anthropic's clients have a header of their own; some send both.
        let own = headers.get(KEY_HEADER).and_then(|value| value.to_str().ok());
        let has = |key: &Key| key.is_borne(headers) || own.is_some_and(|given| key.is(given));
        // All are compared, so that the time does not say how far down the list a key stands.
        let found =
            self.keys.iter().enumerate().fold(None, |found, (number, key)| has(key).then_some(number).or(found));
        found.map(|number| self.callers.by_key(number))
    }

    /// Whether a request that came to this machine alone was meant for it. A page of a foreign name that its owner lets point to
    /// 127.0.0.1 would be of the same origin as this server. Behind a key that does not matter.
    fn meant(&self, headers: &HeaderMap) -> bool {
        let Some(hosts) = self.hosts.as_ref().filter(|_| self.keys.is_empty()) else { return true };
        is_meant(headers, hosts)
    }

    /// What browsers are told, if the origin may use the server.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

/// Lets only those through who have a key, and notes who they are.
pub(super) async fn key(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let Some(caller) = guard.admits(&request) else { return ApiError::unauthorized().into_response() };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Answers browsers that ask what pages of other origins may do, and marks answers for them.
pub(super) async fn origin(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if !guard.meant(request.headers()) {
        let message = "this server is for its own machine: use http://127.0.0.1 or http://localhost, set an API key, or allow \
                       the name that the request has in its Host header with --allow-host NAME";
        return ApiError::forbidden(message).into_response();
    }
    let allowed = guard.allowed(request.headers());
    let mut response = if request.method() == Method::OPTIONS {
        preflight(request.headers(), allowed.is_some())
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !guard.origins.is_empty() {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

fn preflight(asked: &HeaderMap, allowed: bool) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if allowed {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE, OPTIONS"));
        // Every client has names of its own, of which none means anything here; `*` would leave out the key.
        let names = asked.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let names = names.unwrap_or(HeaderValue::from_static("authorization, content-type, x-api-key"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

/// The body of a request, as JSON, and the memory for what is read of it.
///
/// # Errors
/// 400, 408, 413, 415 and 503.
pub(super) async fn body(guard: &Guard, request: Request) -> Result<(Bytes, Weight), ApiError> {
    let limit = guard.request_bytes;
    let (head, body) = request.into_parts();
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let json = header(CONTENT_TYPE).and_then(|kind| kind.split(';').next());
    if !json.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::not_json());
    }
    let origin = head.extensions.get::<Origin>().copied().unwrap_or(Origin::Unknown);
    match tokio::time::timeout(BODY_TIMEOUT, collect(body, limit, (&guard.arriving, origin))).await {
        Ok(bytes) => {
            let body = unpack(bytes?, header(CONTENT_ENCODING), limit)?;
            let weight = guard.weights.take(&body).await?;
            Ok((body, weight))
        }
        Err(_) => Err(ApiError::too_slow()),
    }
}

/// A body of at most `limit` bytes. Its memory is taken as it arrives, and where there is none it is not read any further until there is. Somewhat more is read
/// and dropped, so that who sends it gets to read why it is refused.
async fn collect(body: Body, limit: usize, (arriving, origin): (&Arc<Portions>, Origin)) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut total) = (Vec::new(), 0_usize);
    let mut memory = None;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::invalid("the request was cut off"))?;
        total = total.saturating_add(chunk.len());
        if total <= limit {
            loop {
                let there = match &mut memory {
                    Some(memory) => Portion::grow(memory, chunk.len()),
                    None => {
                        memory = arriving.take(origin, chunk.len());
                        memory.is_some()
                    }
                };
                if there {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            bytes.extend_from_slice(&chunk);
        } else if total > limit.saturating_add(EXCESS) {
            break;
        }
    }
    if total > limit { Err(ApiError::too_large(limit)) } else { Ok(Bytes::from(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::header::HOST;

    #[test]
    fn a_server_of_this_machine_answers_to_names_that_are_allowed() {
        let meant = |key: Option<&str>, hosts: Option<Vec<&str>>, host: &'static str| {
            let hosts = hosts.map(|hosts| hosts.into_iter().map(str::to_owned).collect());
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            let keys: Vec<String> = key.into_iter().map(str::to_owned).collect();
            Guard::new(&keys, Vec::new(), 1, hosts, false).meant(&headers)
        };
        for host in ["localhost:80", "127.0.0.1", "[::1]:8080", "a.localhost"] {
            assert!(meant(None, Some(vec![]), host), "{host}");
        }
        assert!(!meant(None, Some(vec![]), "api.internal"));
        assert!(meant(None, Some(vec!["API.internal"]), "api.internal:8080"));
        assert!(!meant(None, Some(vec!["api.internal"]), "evil.example"));
        assert!(meant(None, Some(vec!["*"]), "any.example"));
        assert!(meant(Some("key"), Some(vec![]), "any.example") && meant(None, None, "any.example"));
    }

    #[test]
    fn callers_are_known_by_their_keys() {
        let keys = ["one".to_owned(), "two".to_owned()];
        let guard = Guard::new(&keys, Vec::new(), 1, None, false);
        let with = |name: &'static str, value: &'static str| {
            let mut request = Request::new(Body::empty());
            request.headers_mut().insert(name, HeaderValue::from_static(value));
            guard.admits(&request)
        };
        let (one, two) = (with("authorization", "Bearer one"), with("x-api-key", "two"));
        assert!(one.is_some() && two.is_some() && one != two);
        assert_eq!(with("x-api-key", "one"), one);
        assert_eq!((with("x-api-key", "three"), guard.admits(&Request::new(Body::empty()))), (None, None));
    }

    #[tokio::test]
    async fn bodies_of_one_address_leave_memory_to_others() {
        let limit = 1 << 10;
        let arriving = Portions::new(4 * limit);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| Origin::of_ip(ip.parse().unwrap()));
        // A body of which most is there, and the rest never comes.
        let slow = || {
            let first = Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1000]));
            Body::from_stream(futures::stream::iter([first]).chain(futures::stream::pending()))
        };
        let mut held: Vec<_> = (0..8).map(|_| Box::pin(collect(slow(), limit, (&arriving, one)))).collect();
        for body in &mut held {
            assert!(tokio::time::timeout(Duration::from_millis(5), body).await.is_err(), "it never ends");
        }
        let whole = |origin| collect(Body::from(vec![b'x'; 1000]), limit, (&arriving, origin));
        let soon = Duration::from_millis(200);
        assert!(tokio::time::timeout(soon, whole(one)).await.is_err(), "the address has its part");
        assert!(tokio::time::timeout(soon, whole(other)).await.is_ok_and(|body| body.is_ok_and(|b| b.len() == 1000)));
        drop(held);
        assert!(tokio::time::timeout(soon, whole(one)).await.is_ok_and(|body| body.is_ok()), "all is given back");
    }
}
