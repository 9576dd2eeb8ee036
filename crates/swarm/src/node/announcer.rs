//! When this node speaks of itself, and what it says.

use std::time::Duration;

use petals_protocol::{MAX_RECORD_LEN, ServerInfo, ServerState};
use tokio::time::Instant;

use crate::keys::MAX_BLOCKS;

/// Peers join in bursts; one announcement serves all that come within this.
const GATHER: Duration = Duration::from_millis(100);
/// Announcements are at least this far apart, unless the state or a span changed. A queue depth changes many times a
/// second; newly started servers still are found within two.
const MIN_GAP: Duration = Duration::from_secs(1);

/// Why nothing is announced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// No known model has so many blocks.
    #[error("blocks beyond {MAX_BLOCKS} cannot be announced, and {0} is the end of the span")]
    Span(u32),
    /// The record would be refused by others.
    #[error("the description of this server has more than {MAX_RECORD_LEN} bytes: shorten its public name")]
    TooLong,
    /// The record could not be signed or kept.
    #[error("the announcement cannot be made: {0}")]
    Record(String),
    /// This node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// Decides when to announce; the event loop does it.
#[derive(Debug)]
pub(super) struct Announcer {
    period: Duration,
    current: Option<ServerInfo>,
    due: Option<Instant>,
    last: Option<Instant>,
    last_written_ms: u64,
}

impl Announcer {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, current: None, due: None, last: None, last_written_ms: 0 }
    }

    /// Sets what is announced from now on. Returns what was announced before.
    pub(super) fn set(&mut self, info: ServerInfo, now: Instant) -> Option<ServerInfo> {
        let what = |info: &ServerInfo| (info.model.clone(), info.span, info.moving_to, info.state);
        let urgent = self.current.as_ref().is_none_or(|old| what(old) != what(&info));
        let earliest = if urgent { now } else { self.earliest(now) };
        self.bring_forward(earliest);
        self.current.replace(info)
    }

    /// Ends the announcing. Returns the last words, if anything was said before.
    pub(super) fn withdraw(&mut self, now_ms: u64) -> Option<ServerInfo> {
        self.due = None;
        let last = self.current.take()?;
        Some(ServerInfo { state: ServerState::Offline, written_ms: self.stamp(now_ms), ..last })
    }

    /// Others may need to hear again: a node joined, or an address changed.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.current.is_some() {
            let earliest = self.earliest(now + GATHER);
            self.bring_forward(earliest);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due
    }

    /// What to announce now, if it is time. `heard`: whether any node is there to keep it; if not, the first that comes
    /// is told at once.
    pub(super) fn take_due(&mut self, now: Instant, now_ms: u64, heard: bool) -> Option<ServerInfo> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        let written_ms = self.stamp(now_ms);
        let info = self.current.as_mut()?;
        info.written_ms = written_ms;
        self.last = heard.then_some(now);
        self.due = Some(now + self.period);
        Some(info.clone())
    }

    fn earliest(&self, wanted: Instant) -> Instant {
        self.last.map_or(wanted, |last| wanted.max(last + MIN_GAP.min(self.period)))
    }

    fn bring_forward(&mut self, wanted: Instant) {
        self.due = Some(self.due.map_or(wanted, |due| due.min(wanted)));
    }

    /// Others keep the later of two records, so two never have the same time, even if the clock is set back.
    pub(super) fn stamp(&mut self, now_ms: u64) -> u64 {
        self.last_written_ms = now_ms.max(self.last_written_ms + 1);
        self.last_written_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::info;

    #[test]
    fn a_change_of_span_is_announced_at_once_and_other_changes_are_gathered() {
        let now = Instant::now();
        let mut announcer = Announcer::new(Duration::from_secs(60));
        announcer.set(info((0, 4), 0), now);
        assert!(announcer.take_due(now, 5, true).is_some());
        let busy = ServerInfo { queue_depth: 3, ..info((0, 4), 0) };
        announcer.set(busy, now);
        assert!(announcer.take_due(now, 5, true).is_none());
        assert_eq!(announcer.take_due(now + MIN_GAP, 5, true).unwrap().queue_depth, 3);
        announcer.set(info((0, 5), 0), now + MIN_GAP);
        assert!(announcer.take_due(now + MIN_GAP, 5, true).is_some());
        assert_eq!(announcer.next_due(), Some(now + MIN_GAP + Duration::from_secs(60)));
    }

    #[test]
    fn every_record_is_later_than_the_one_before() {
        let now = Instant::now();
        let mut announcer = Announcer::new(Duration::from_secs(60));
        announcer.set(info((0, 4), 0), now);
        assert_eq!(announcer.take_due(now, 1000, true).unwrap().written_ms, 1000);
        announcer.hurry(now);
        assert_eq!(announcer.take_due(now + MIN_GAP + GATHER, 10, true).unwrap().written_ms, 1001);
        let last = announcer.withdraw(10).unwrap();
        assert_eq!((last.written_ms, last.state), (1002, ServerState::Offline));
        assert!(announcer.withdraw(10).is_none() && announcer.next_due().is_none());
        announcer.hurry(now);
        assert!(announcer.next_due().is_none(), "nothing to say");
    }
}
