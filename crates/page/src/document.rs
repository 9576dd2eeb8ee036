//! A page that needs nothing from elsewhere.

use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};

/// What stands in a page for the nonce.
const NONCE: &str = "NONCE";

/// Answers with a page. Only scripts and styles that bear this answer's nonce are run, and the page may talk to its own server alone.
pub fn document(page: &str) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin".to_owned()),
    ];
    (headers, page.replace(NONCE, &nonce)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_nonce_of_its_own_and_the_policy_names_it() {
        let policy = || {
            let response = document("<script nonce=\"NONCE\"></script>");
            response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned()
        };
        let (one, two) = (policy(), policy());
        assert_ne!(one, two);
        assert!(one.starts_with("default-src 'none'") && one.contains("script-src 'nonce-") && !one.contains("NONCE"));
    }
}
