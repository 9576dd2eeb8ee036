//! Writing a server's record and its name under the keys of its blocks into the hash table: when, and how much at a time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use libp2p::kad::{QueryId, RecordKey};
use petals_protocol::{ModelId, ServerInfo, Span};
use tokio::time::Instant;

use crate::store::PROVIDER_TTL;

/// Keys written at a time. Each asks its way to the nodes near the key, three at a time, and then tells up to 12. A server
/// of 32 blocks over links of 100 ms is done in a few seconds, and one of a thousand does not open a thousand connections
/// at once.
const PARALLEL: usize = 16;
/// Pause between two announcements that are made because the swarm grows. Doubled each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
const LONGEST_PAUSE: Duration = Duration::from_secs(24);

/// What was written when, and what is being written. The entries are an index of records, so they may live longer than
/// these: a server writes one record a period, but an entry for each of its blocks only every two and a half minutes.
#[derive(Debug)]
pub(super) struct Publisher {
    last: Option<(ModelId, Span, Instant)>,
    /// Keys of blocks to write.
    waiting: VecDeque<RecordKey>,
    running: HashMap<QueryId, RecordKey>,
    /// Nodes in the routing table when all was written last, or the fewest since.
    told: usize,
    pause: Duration,
    /// Growth is no reason to write before.
    not_before: Option<Instant>,
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            last: None,
            waiting: VecDeque::new(),
            running: HashMap::new(),
            told: 0,
            pause: FIRST_PAUSE,
            not_before: None,
        }
    }
}

impl Publisher {
    /// Whether it is time to write the entries of what `info` says. If so, it counts as done. `known`: nodes in the routing
    /// table.
    pub(super) fn take_due(&mut self, info: &ServerInfo, known: usize, now: Instant) -> bool {
        let fresh = |(model, span, at): &(ModelId, Span, Instant)| {
            *model == info.model && *span == info.span && now < *at + PROVIDER_TTL / 2
        };
        if self.last.as_ref().is_some_and(fresh) {
            return false;
        }
        self.last = Some((info.model.clone(), info.span, now));
        self.told = known;
        if known > 0 {
            let quiet = self.not_before.is_none_or(|before| now > before + LONGEST_PAUSE);
            self.pause = if quiet { FIRST_PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
            self.not_before = Some(now + self.pause);
        }
        true
    }

    /// Nodes that should keep the entries may not have them.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Whether the swarm has grown so much that those who look for this server ask others than those who were told: to twice
    /// its size since then. During the pause and while something is being written the answer is no: where that takes long,
    /// many nodes are starting at once, and writing everything anew for each would keep all of them busy.
    pub(super) fn has_outgrown(&mut self, known: usize, now: Instant) -> bool {
        self.told = self.told.min(known);
        let rested = self.not_before.is_none_or(|before| now >= before);
        self.running.is_empty() && self.waiting.is_empty() && rested && known >= (2 * self.told).max(1)
    }

    /// Sets the keys to write now, in place of those that still wait.
    pub(super) fn set_waiting(&mut self, keys: impl Iterator<Item = RecordKey>) {
        self.waiting = keys.collect();
    }

    /// The next key to write, if there is one and room for it. One that is being written just now comes after that.
    pub(super) fn next(&mut self) -> Option<RecordKey> {
        if self.running.len() >= PARALLEL {
            return None;
        }
        let free = self.waiting.iter().position(|key| !self.running.values().any(|other| other == key))?;
        self.waiting.remove(free)
    }

    /// A key is being written.
    pub(super) fn on_started(&mut self, id: QueryId, key: RecordKey) {
        self.running.insert(id, key);
    }

    /// A query has ended, perhaps one of these.
    pub(super) fn on_ended(&mut self, id: &QueryId) {
        self.running.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::info;

    #[test]
    fn entries_are_renewed_in_time_and_when_the_span_changes() {
        let (mut publisher, now) = (Publisher::default(), Instant::now());
        assert!(publisher.take_due(&info((0, 4), 0), 1, now));
        assert!(!publisher.take_due(&info((0, 4), 1), 1, now));
        assert!(publisher.take_due(&info((0, 5), 2), 1, now));
        assert!(publisher.take_due(&info((0, 5), 2), 1, now + PROVIDER_TTL / 2));
        publisher.forget();
        assert!(publisher.take_due(&info((0, 5), 2), 1, now));
    }

    #[test]
    fn a_growing_swarm_is_told_again_with_growing_pauses() {
        let (mut publisher, start) = (Publisher::default(), Instant::now());
        assert!(publisher.take_due(&info((0, 4), 0), 0, start));
        assert!(!publisher.has_outgrown(0, start) && publisher.has_outgrown(1, start));
        // One node a second joins.
        let (mut told, mut now) = (Vec::new(), start);
        for known in 1..=100 {
            if publisher.has_outgrown(known, now) {
                publisher.forget();
                assert!(publisher.take_due(&info((0, 4), 0), known, now));
                told.push(known);
            }
            now += Duration::from_secs(1);
        }
        // Pauses of 3, 6, 12, 24 and 24 s.
        assert_eq!(told, [1, 4, 10, 22, 46, 92]);
        now += LONGEST_PAUSE;
        assert!(!publisher.has_outgrown(100, now));
        // Most went away and others came.
        assert!(!publisher.has_outgrown(10, now) && publisher.has_outgrown(20, now));
    }
}
