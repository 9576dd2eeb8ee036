//! When a server's name is put under the keys of its blocks again.

use petals_protocol::{ModelId, ServerInfo, Span};
use tokio::time::Instant;

use crate::store::PROVIDER_TTL;

/// The entries are an index of records, so they may live longer than these: a server writes one record a period, but an entry
/// for each of its blocks only every two and a half minutes.
#[derive(Debug, Default)]
pub(super) struct Provided {
    last: Option<(ModelId, Span, Instant)>,
}

impl Provided {
    /// Whether it is time for what `info` says. If so, it counts as done.
    pub(super) fn take_due(&mut self, info: &ServerInfo, now: Instant) -> bool {
        let fresh = |(model, span, at): &(ModelId, Span, Instant)| {
            *model == info.model && *span == info.span && now < *at + PROVIDER_TTL / 2
        };
        if self.last.as_ref().is_some_and(fresh) {
            return false;
        }
        self.last = Some((info.model.clone(), info.span, now));
        true
    }

    /// Nodes that should keep them may not have them.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::info;

    #[test]
    fn entries_are_renewed_in_time_and_when_the_span_changes() {
        let (mut provided, now) = (Provided::default(), Instant::now());
        assert!(provided.take_due(&info((0, 4), 0), now));
        assert!(!provided.take_due(&info((0, 4), 1), now));
        assert!(provided.take_due(&info((0, 5), 2), now));
        assert!(provided.take_due(&info((0, 5), 2), now + PROVIDER_TTL / 2));
        provided.forget();
        assert!(provided.take_due(&info((0, 5), 2), now));
    }
}
