//! Contents from somebody nearer than the hub.

use std::sync::atomic::Ordering;

use super::{Check, Content, Partial, Poured, Shared};
use crate::error::HubError;
use crate::nearby::{Found, Nearby, Wanted};
use crate::progress::Progress;

/// Failures after which the hub has the rest of a content, whoever else may have it.
const MOST_FAILURES: usize = 8;

impl Shared<'_> {
    /// Takes what is missing of a content from those nearby, as far as they have it.
    pub(super) fn take(
        &self,
        content: &Content<'_>,
        partial: &mut Partial,
        nearby: &dyn Nearby,
    ) -> Result<(), HubError> {
        // What has no hash that nobody can forge comes from the hub alone.
        let (Some(size), Check::Sha256(_)) = (content.size, &partial.check) else { return Ok(()) };
        for _ in 0..MOST_FAILURES {
            if partial.length >= size || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let start = partial.length;
            let Some(Found { from, mut bytes }) = nearby.find(&Wanted { sha256: content.etag, size, start }) else {
                return Ok(());
            };
            let model = content.name.to_string();
            (self.tells)(&Progress::Taking { model, file: content.file.to_owned(), from: from.clone() });
            let poured = self.pour(content, partial, &mut *bytes, Some(size));
            let came = partial.length - start;
            if came > 0 {
                self.given.fetch_add(came, Ordering::Relaxed);
                partial.givers.push((from.clone(), came));
            }
            let reason = match poured {
                Ok(()) if partial.length == size => return Ok(()),
                Ok(()) => "it ended too early".to_owned(),
                Err(Poured::Final(error)) => return Err(error),
                Err(Poured::Read(error)) => error.to_string(),
                Err(Poured::TooMany) => "it sent more than there is".to_owned(),
            };
            nearby.failed(&from);
            self.leave(content, from, reason);
        }
        Ok(())
    }

    /// Remembers who gave bytes to a content that does not have its hash. Returns whether there is anybody.
    pub(super) fn blame(
        &self,
        content: &Content<'_>,
        givers: Vec<(String, u64)>,
        nearby: Option<&dyn Nearby>,
        what: &str,
    ) -> bool {
        let blamed = !givers.is_empty();
        for (from, bytes) in givers {
            self.given.fetch_sub(bytes, Ordering::Relaxed);
            if let Some(nearby) = nearby {
                nearby.lied(&from);
            }
            self.leave(content, from, format!("the content with its bytes has {what}"));
        }
        blamed
    }

    fn leave(&self, content: &Content<'_>, from: String, reason: String) {
        (self.tells)(&Progress::Left { model: content.name.to_string(), file: content.file.to_owned(), from, reason });
    }
}
