//! The chat page.

use axum::response::Response;
use petals_page::document;

/// The page. Everything that it needs is in it.
const PAGE: &str = include_str!("page.html");

/// Answers with the page.
pub(super) async fn page() -> Response {
    document(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for foreign in ["http://", "https://", "src=", "@import", "url(", "innerHTML", "eval(", "style=\"", "onclick="]
        {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        assert_eq!(PAGE.matches("nonce=\"NONCE\"").count(), PAGE.matches("NONCE").count());
    }
}
