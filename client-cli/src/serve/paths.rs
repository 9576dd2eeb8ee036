//! Paths as clients write them.
//!
//! People give their programs the address of a server with and without `/v1`, with a slash behind it or with the whole path of an endpoint, and
//! programs put their own path behind that.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;

/// First parts of paths that stand behind `/v1`.
const API: [&str; 6] = ["models", "completions", "chat", "embeddings", "responses", "messages"];
/// Paths that do not, though some servers have them there.
const BESIDE: [&str; 6] = ["tokenize", "detokenize", "tokenizer_info", "health", "metrics", "version"];

/// Gives a request the path that it means.
pub(super) async fn meant(mut request: Request) -> Request {
    if let Some(uri) = plain(request.uri().path()).and_then(|path| with_path(request.uri(), &path)) {
        *request.uri_mut() = uri;
    }
    request
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let whole = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(whole).ok()?);
    Uri::from_parts(parts).ok()
}

/// The path that is meant, if it is another one.
fn plain(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    while let ["v1", "v1", ..] = parts.as_slice() {
        parts.remove(0);
    }
    match parts.as_slice() {
        [first, ..] if API.contains(first) => parts.insert(0, "v1"),
        ["v1", beside] if BESIDE.contains(beside) => {
            parts.remove(0);
        }
        _ => {}
    }
    let plain = format!("/{}", parts.join("/"));
    (plain != path).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_found_however_its_address_is_put_together() {
        for (path, meant) in [
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("//v1//completions", "/v1/completions"),
            ("/v1/v1/embeddings", "/v1/embeddings"),
            ("/models/", "/v1/models"),
            ("/models/a:b", "/v1/models/a:b"),
            ("/v1/tokenize", "/tokenize"),
            ("/health/", "/health"),
        ] {
            assert_eq!(plain(path).as_deref(), Some(meant), "{path}");
        }
        for path in
            ["/", "/v1/models", "/v1/models/org/name", "/v1", "/tokenize", "/nothing", "/v1/nothing", "/v1/models/v1"]
        {
            assert_eq!(plain(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_asked_for_stays_behind_the_path() {
        let of = |uri: &str| with_path(&uri.parse::<Uri>().ok()?, "/v1/models").map(|uri| uri.to_string());
        assert_eq!(of("/models?a=1").as_deref(), Some("/v1/models?a=1"));
        assert_eq!(of("http://localhost:80/models").as_deref(), Some("http://localhost:80/v1/models"));
    }
}
