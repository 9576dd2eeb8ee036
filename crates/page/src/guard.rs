//! Whose requests are answered.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST};

/// A key that clients must have. Hashes are compared in constant time, and have one length.
#[derive(Debug, Clone, Copy)]
pub struct Key(blake3::Hash);

impl Key {
    /// The key.
    pub fn new(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// Whether somebody has it.
    pub fn is(&self, given: &str) -> bool {
        blake3::hash(given.trim().as_bytes()) == self.0
    }

    /// Whether a request bears it, as `Authorization: Bearer KEY`.
    pub fn is_borne(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (scheme, given) = given.split_once(' ').unwrap_or_default();
        scheme.eq_ignore_ascii_case("bearer") && self.is(given)
    }
}

/// Whether a request that came to this machine alone was meant for it, by its Host header. A page of a foreign name that its owner lets point to
/// 127.0.0.1 would be of the same origin as the server. `names`: those that are allowed besides `localhost` and addresses; `*` for all.
pub fn is_meant(headers: &HeaderMap, names: &[String]) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let host = host.to_str().unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(v6) => return v6.starts_with("::1]"),
        None => host.split(':').next().unwrap_or_default(),
    };
    let named = |allowed: &String| allowed == "*" || allowed.eq_ignore_ascii_case(name);
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<std::net::IpAddr>().is_ok()
        || names.iter().any(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn names_of_others_are_not_meant() {
        let meant = |host: &'static str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            is_meant(&HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]), &names)
        };
        for host in ["localhost:80", "127.0.0.1", "[::1]:8080", "a.localhost"] {
            assert!(meant(host, &[]), "{host}");
        }
        assert!(!meant("evil.example", &[]) && !meant("[::2]:80", &[]));
        assert!(meant("API.internal:8080", &["api.internal"]) && meant("any.example", &["*"]));
    }

    #[test]
    fn only_the_whole_key_opens() {
        let key = Key::new("secret");
        let with = |value: &'static str| {
            key.is_borne(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]))
        };
        assert!(with("Bearer secret") && with("bearer  secret"));
        assert!(!with("Bearer secre") && !with("secret") && !with("Basic secret") && !with("Bearer "));
        assert!(!key.is_borne(&HeaderMap::new()));
    }
}
