//! Addresses: whose they are, and what of them may be shown.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What need not be encoded in a part of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Scheme, host and port, in small letters and with the port that is meant.
pub(super) fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let usual = if scheme == "https" { ":443" } else { ":80" };
    format!("{scheme}://{}", host.strip_suffix(usual).unwrap_or(&host))
}

/// An address as it may be shown: signatures are in what is left out.
pub(super) fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// A part of a path.
pub(super) fn encoded(part: &str) -> String {
    utf8_percent_encode(part, PLAIN).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_with_the_ports_that_are_meant() {
        assert_eq!(origin("https://Hub.example/a/b?c"), origin("https://hub.example:443"));
        assert_eq!(origin("http://hub.example:80/"), origin("http://hub.example"));
        for other in
            ["http://hub.example", "https://hub.example:8443", "https://hub.example.org", "https://cdn.hub.example"]
        {
            assert_ne!(origin("https://hub.example"), origin(other));
        }
    }

    #[test]
    fn what_is_shown_has_no_signature() {
        assert_eq!(without_query("https://cdn/x?X-Amz-Signature=1"), "https://cdn/x");
        assert_eq!(encoded("refs/pr/1"), "refs%2Fpr%2F1");
    }
}
