//! Who takes the time that it says, as a short request without consequences and passes show.

use petals_protocol::ServerInfo;
use petals_swarm::PeerId;

use super::super::reputation::{Charge, Entry, unix_s};
use super::estimate::usual_round_trip;
use super::{ALLOWANCE, Measurement, PeerRecord, PeerTable, UNACCOUNTED, unaccounted};
use crate::lock::lock;
use crate::planner::Punctuality;

/// Who is charged more than these seconds for each pass was late.
const LATE: f64 = 0.05;
/// A block may take so many times as long as announced before somebody who is tried out is charged for it.
const SLOWER: f64 = 4.0;
/// Seconds of a round trip that a single ping is believed: around the world, and not behind somebody who is busy.
const FARTHEST: f64 = 0.4;
/// In which time half of a charge of earlier runs is forgotten: machines and links change.
const HALF_LIFE_S: f64 = 3600.0;

/// What is left of what earlier runs found, `age_s` seconds ago.
pub(super) fn left_of(charge: Charge, age_s: u64) -> Option<f64> {
    match charge {
        Charge::OnTime => Some(0.0),
        // Of who was late so long ago nothing is known any more.
        Charge::Late { ms } => {
            let seconds = ms as f64 / 1e3 * (-(age_s as f64) / HALF_LIFE_S).exp2();
            Some(seconds).filter(|seconds| *seconds > LATE)
        }
        Charge::Untrue | Charge::Suspended { .. } => None,
    }
}

/// What is known of a server before passes say more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tried {
    /// It costs so many seconds beyond what it accounts for.
    Charge(f64),
    /// Its answer took so many seconds beyond what it accounts for, the way included. How long that is shows when pings were there and back.
    Waited { beyond: f64, usual_round_trip: f64 },
}

impl PeerRecord {
    /// Seconds that it costs beyond what it accounts for, as far as anything is known of that.
    pub(super) fn charge(&self) -> Option<f64> {
        let of_trial = |tried| match tried {
            Tried::Charge(charge) => charge,
            Tried::Waited { beyond, usual_round_trip } => {
                let farthest = if self.pings.0.len() > 1 { f64::INFINITY } else { FARTHEST };
                let round_trip = self.pings.least().map_or(usual_round_trip, |ping| ping.min(farthest));
                unaccounted(beyond, round_trip)
            }
        };
        self.unaccounted.least().or(self.tried.map(of_trial))
    }

    /// What the next run should know: who was late, and who was on time where that had to be found out.
    fn news(&self) -> Option<Charge> {
        let charge =
            self.charge().filter(|charge| self.unaccounted.least().is_some() || Some(*charge) != self.remembered)?;
        if charge > LATE {
            return Some(Charge::Late { ms: (charge * 1e3) as u64 });
        }
        self.tried.map(|_| Charge::OnTime)
    }

    fn punctuality(&self) -> Punctuality {
        match self.charge() {
            Some(charge) if charge > LATE => Punctuality::Late,
            Some(_) => Punctuality::OnTime,
            // Passes that carried much say how fast it is, and nothing of charges.
            None if self.row_seconds.is_some() || self.step_seconds.is_some() => Punctuality::OnTime,
            None => Punctuality::Unknown,
        }
    }
}

impl PeerTable {
    /// Whether a server was as quick as it says.
    pub(crate) fn punctuality(&self, peer: PeerId) -> Punctuality {
        self.of(peer, PeerRecord::punctuality)
    }

    /// A server of which nothing was known answered a short request. What it took longer than it accounts for is charged, and so is what
    /// it computes much longer than it announces. Speeds are not taken from it: one row says little of many.
    pub(crate) fn tried(&self, peer: PeerId, measured: Measurement, info: &ServerInfo) {
        self.with(peer, |record| {
            let whole = info.decode_tokens_per_s.or(info.forward_tokens_per_s).filter(|rate| *rate > 0.0);
            let announced = whole.map(|rate| measured.blocks as f64 / (f64::from(rate) * info.span.len() as f64));
            let most = announced.map_or(f64::INFINITY, |seconds| SLOWER * seconds + UNACCOUNTED);
            let computed = measured.computed.as_secs_f64().min(most);
            record.queues.add(measured.queued.min(measured.elapsed).as_secs_f64());
            let beyond = measured.elapsed.as_secs_f64() - ALLOWANCE * (computed + measured.queued.as_secs_f64());
            record.tried = Some(Tried::Waited { beyond, usual_round_trip: usual_round_trip(info.relayed) });
        });
    }

    /// A server of which nothing was known did not answer a short request for `seconds`.
    pub(crate) fn tried_in_vain(&self, peer: PeerId, seconds: f64) {
        self.with(peer, |record| record.tried = Some(Tried::Charge(seconds)));
    }
}

impl Drop for PeerTable {
    /// Has the next run know who was late and who was on time, in one go at the end.
    fn drop(&mut self) {
        let Some(reputation) = &self.reputation else { return };
        let at_s = unix_s();
        let news = |(peer, record): (&PeerId, &PeerRecord)| Some(Entry { peer: *peer, charge: record.news()?, at_s });
        let news: Vec<Entry> = lock(&self.records).iter().filter_map(news).collect();
        if !news.is_empty() {
            reputation.add(&news, at_s);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::servers::peers::tests::{PASS, info};
    use crate::servers::reputation::Reputation;

    fn measured(elapsed_ms: u64, computed_ms: u64, queued_ms: u64) -> Measurement {
        let [elapsed, computed, queued] = [elapsed_ms, computed_ms, queued_ms].map(Duration::from_millis);
        Measurement { rows: 1, blocks: 1, bytes: 256, elapsed, computed, queued, handed: Duration::ZERO }
    }

    #[test]
    fn who_is_tried_out_pays_for_what_was_waited_until_passes_say_more() {
        let (table, peer) = (PeerTable::default(), PeerId::random());
        let queue = || table.estimate(peer, &info(), PASS, 0).queue_seconds.value;
        assert_eq!(table.punctuality(peer), Punctuality::Unknown);
        // Whether it says that it took no time, or that it took much more than it announced.
        let announced = ServerInfo { decode_tokens_per_s: Some(100.0), ..info() };
        for computed in [0, 900] {
            table.tried(peer, measured(910, computed, 0), &announced);
            assert_eq!(table.punctuality(peer), Punctuality::Late);
            assert!(queue() > 0.5, "{}", queue());
        }
        table.tried(peer, measured(12, 2, 0), &info());
        assert_eq!((table.punctuality(peer), queue()), (Punctuality::OnTime, 0.0));
        // Whoever is quick only as long as it is tried out is found out by the first pass.
        table.chained(&[(peer, measured(5, 0, 0))], Duration::from_millis(910));
        assert!(table.punctuality(peer) == Punctuality::Late && queue() > 0.7);
        table.tried(peer, measured(12, 2, 0), &info());
        assert_eq!(table.punctuality(peer), Punctuality::Late, "it is not cleared by being tried out again");
    }

    #[test]
    fn who_is_far_away_is_not_late() {
        let (table, peer) = (PeerTable::default(), PeerId::random());
        let ping = |ms| table.pinged(peer, Duration::from_millis(ms));
        // Whatever comes first, the answer or the ping.
        table.tried(peer, measured(152, 2, 0), &info());
        assert_eq!(table.punctuality(peer), Punctuality::Late);
        ping(150);
        assert_eq!(table.punctuality(peer), Punctuality::OnTime);
        // A first ping may be late by itself, or held back.
        table.tried(peer, measured(910, 2, 0), &info());
        ping(800);
        assert_eq!(table.punctuality(peer), Punctuality::Late);
        let (table, other) = (PeerTable::default(), PeerId::random());
        table.pinged(other, Duration::from_millis(800));
        table.tried(other, measured(910, 2, 0), &info());
        assert_eq!(table.punctuality(other), Punctuality::Late);
        table.pinged(other, Duration::from_millis(700));
        assert_eq!(table.punctuality(other), Punctuality::OnTime, "it costs that much for every pass");
    }

    #[test]
    fn trying_a_server_out_leaves_the_speed_that_it_announces() {
        let (table, peer) = (PeerTable::default(), PeerId::random());
        let block = || table.estimate(peer, &info(), PASS, 0).block_seconds;
        let before = block();
        table.tried(peer, measured(12, 2, 0), &info());
        assert_eq!(block(), before);
    }

    #[test]
    fn the_next_run_knows_who_was_late_and_who_was_on_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = || PeerTable::remembering(Some(Reputation::new(folder.path().join("reputation"))));
        let [late, quick, later, alone] = [(); 4].map(|()| PeerId::random());
        let first = run();
        first.tried(late, measured(910, 0, 0), &info());
        [quick, later].iter().for_each(|peer| first.tried(*peer, measured(12, 2, 0), &info()));
        first.chained(&[(later, measured(5, 0, 0))], Duration::from_millis(910));
        // Of whom nobody had to choose nothing is written.
        first.succeeded(alone, measured(5, 2, 0));
        drop(first);
        let second = run();
        let of = |peers: [PeerId; 4]| peers.map(|peer| second.punctuality(peer));
        use Punctuality::{Late, OnTime, Unknown};
        assert_eq!(of([late, quick, later, alone]), [Late, OnTime, Late, Unknown]);
        // A charge fades, and what nobody found out again is not written as if it were new.
        assert_eq!(left_of(Charge::Late { ms: 800 }, 3600), Some(0.4));
        assert_eq!(left_of(Charge::Late { ms: 800 }, 5 * 3600), None);
        drop(second);
        let lines = std::fs::read_to_string(folder.path().join("reputation")).unwrap();
        assert_eq!(lines.lines().count(), 4, "{lines}");
    }
}
