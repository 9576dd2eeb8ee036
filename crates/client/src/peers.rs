//! What this client has experienced with each server.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use petals_protocol::ServerInfo;
use petals_swarm::PeerId;

/// First ban. Long enough to plan around a crashed server, short enough to come back to a restarted one.
const FIRST_BAN: Duration = Duration::from_secs(4);
/// Longest ban.
const LONGEST_BAN: Duration = Duration::from_secs(600);
/// Weight of a new measurement in the running means.
const NEW_WEIGHT: f64 = 0.2;
/// Seconds for one row in one block where nothing was measured or announced: a middling CPU.
const UNKNOWN_ROW_SECONDS: f64 = 50e-6;
/// Seconds a request takes besides computation where nothing was measured: a link within a country.
const UNKNOWN_OVERHEAD: f64 = 0.03;

#[derive(Debug, Default, Clone)]
struct PeerRecord {
    failures: u32,
    banned_until: Option<Instant>,
    row_seconds: Option<f64>,
    overhead: Option<f64>,
}

/// Failures, bans and running means of measured speed, by peer.
#[derive(Debug, Default)]
pub(crate) struct PeerTable(Mutex<HashMap<PeerId, PeerRecord>>);

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurement {
    /// Rows times blocks of a forward.
    pub(crate) row_blocks: usize,
    /// From sending to the answer.
    pub(crate) elapsed: Duration,
    /// As the server reported it.
    pub(crate) computed: Duration,
    /// As the server reported it.
    pub(crate) queued: Duration,
}

impl PeerTable {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, PeerRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a ban and takes the measurement into the means.
    pub(crate) fn succeeded(&self, peer: PeerId, measured: Measurement) {
        let mut records = self.lock();
        let record = records.entry(peer).or_default();
        record.failures = 0;
        record.banned_until = None;
        let mix = |old: Option<f64>, new: f64| old.map_or(new, |old| old + NEW_WEIGHT * (new - old));
        // A server cannot make itself attractive by claiming less time than passed, nor cheaper than zero.
        let computed = measured.computed.min(measured.elapsed);
        let row_seconds = computed.as_secs_f64() / measured.row_blocks.max(1) as f64;
        record.row_seconds = Some(mix(record.row_seconds, row_seconds));
        record.overhead = Some(mix(record.overhead, (measured.elapsed - computed).as_secs_f64()));
    }

    /// Bans the peer, twice as long at each failure in a row, and returns for how long. Failures during a ban do not count:
    /// they are those of passes that were under way when the first one failed.
    pub(crate) fn failed(&self, peer: PeerId, now: Instant) -> Duration {
        let mut records = self.lock();
        let record = records.entry(peer).or_default();
        if let Some(until) = record.banned_until.filter(|until| now < *until) {
            return until - now;
        }
        record.failures = record.failures.saturating_add(1);
        let doublings = (record.failures - 1).min(16);
        let ban = (FIRST_BAN * 2u32.pow(doublings)).min(LONGEST_BAN);
        record.banned_until = Some(now + ban);
        ban
    }

    /// Whether the planner should avoid the peer.
    pub(crate) fn is_banned(&self, peer: PeerId, now: Instant) -> bool {
        self.lock().get(&peer).and_then(|record| record.banned_until).is_some_and(|until| now < until)
    }

    /// Estimated seconds for `rows` in one block, and besides, of one request to a server.
    pub(crate) fn estimate(&self, peer: PeerId, info: &ServerInfo, rtt: Option<Duration>, rows: usize) -> (f64, f64) {
        let record = self.lock().get(&peer).cloned().unwrap_or_default();
        let announced = info.forward_tokens_per_s.filter(|rate| *rate > 0.0);
        let announced = announced.map(|rate| 1.0 / (f64::from(rate) * info.span.len() as f64));
        let row_seconds = record.row_seconds.or(announced).unwrap_or(UNKNOWN_ROW_SECONDS);
        let overhead = record.overhead.or(rtt.map(|rtt| rtt.as_secs_f64())).unwrap_or(UNKNOWN_OVERHEAD);
        let block_seconds = row_seconds * rows as f64;
        // Measured overheads contain the queue already; announced depths count where nothing was measured.
        let queue = if record.overhead.is_none() { f64::from(info.queue_depth.min(64)) } else { 0.0 };
        (block_seconds, overhead + queue * block_seconds * info.span.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::{Fingerprint, ModelId, ServerState, Span};

    fn info(rate: Option<f32>, queue_depth: u32) -> ServerInfo {
        let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
        let span = Span::new(0, 4).unwrap();
        ServerInfo { forward_tokens_per_s: rate, queue_depth, ..ServerInfo::new(model, span, ServerState::Online) }
    }

    #[test]
    fn bans_apply_at_once_double_and_end_with_a_success() {
        let (table, peer, mut now) = (PeerTable::default(), PeerId::random(), Instant::now());
        assert!(!table.is_banned(peer, now));
        let first = table.failed(peer, now);
        assert!(table.is_banned(peer, now) && !table.is_banned(peer, now + first));
        assert_eq!(table.failed(peer, now + first / 2), first / 2, "a second failure during the ban is the same one");
        now += first;
        assert_eq!(table.failed(peer, now), first * 2);
        for _ in 0..100 {
            now += LONGEST_BAN;
            assert!(table.failed(peer, now) <= LONGEST_BAN);
        }
        let quick = Duration::from_millis(1);
        table.succeeded(peer, Measurement { row_blocks: 1, elapsed: quick, computed: quick, queued: Duration::ZERO });
        assert!(!table.is_banned(peer, now));
        assert_eq!(table.failed(peer, now), first);
    }

    #[test]
    fn estimates_go_from_defaults_over_announcements_to_measurements() {
        let (table, peer) = (PeerTable::default(), PeerId::random());
        let (unknown, _) = table.estimate(peer, &info(None, 0), None, 10);
        assert!((unknown - 10.0 * UNKNOWN_ROW_SECONDS).abs() < 1e-12);
        let rtt = Some(Duration::from_millis(7));
        let (block, overhead) = table.estimate(peer, &info(Some(1000.0), 0), rtt, 10);
        assert!((block - 10.0 / 4000.0).abs() < 1e-9 && (overhead - 0.007).abs() < 1e-9);
        let (_, queued) = table.estimate(peer, &info(Some(1000.0), 3), rtt, 10);
        assert!((queued - 0.007 - 3.0 * 4.0 * block).abs() < 1e-9);
        let (elapsed, computed) = (Duration::from_millis(30), Duration::from_millis(20));
        table.succeeded(peer, Measurement { row_blocks: 40, elapsed, computed, queued: Duration::ZERO });
        let (block, overhead) = table.estimate(peer, &info(Some(1000.0), 3), rtt, 10);
        assert!((block - 0.005).abs() < 1e-9 && (overhead - 0.01).abs() < 1e-9);
    }

    #[test]
    fn a_server_that_claims_more_time_than_passed_is_not_believed() {
        let (table, peer) = (PeerTable::default(), PeerId::random());
        let (elapsed, computed) = (Duration::from_millis(10), Duration::from_secs(1000));
        table.succeeded(peer, Measurement { row_blocks: 10, elapsed, computed, queued: Duration::ZERO });
        let (block, overhead) = table.estimate(peer, &info(None, 0), None, 10);
        assert!((block - 0.01).abs() < 1e-9 && overhead.abs() < 1e-9);
    }
}
