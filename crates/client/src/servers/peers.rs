//! What this client has experienced with each server.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use petals_swarm::PeerId;

use super::reputation::{Charge, Entry, Reputation, unix_s};
use crate::lock::lock;

mod estimate;
mod punctuality;

pub(crate) use estimate::PassSize;
pub use estimate::{CostEstimate, Figure, Source};

/// First ban. Long enough to plan around a crashed server, short enough to come back to a restarted one.
const FIRST_BAN: Duration = Duration::from_secs(4);
/// Longest ban.
const LONGEST_BAN: Duration = Duration::from_secs(600);
/// For how long a server is passed over whose results strangers call wrong, at first.
const SUSPENSION: Duration = Duration::from_secs(600);
/// And at most.
const LONGEST_SUSPENSION: Duration = Duration::from_secs(4 * 3600);
/// How long a busy server counts as slower by what it hinted at, at least.
const BUSY_MEMORY: Duration = Duration::from_secs(10);
/// Answers that say how long one usually takes.
const WAITS: usize = 16;
/// Refusals in a row after which what a busy server counts as slower is not doubled any more.
const BUSY_DOUBLINGS: i32 = 12;
/// How long a server that kept a chain waiting is watched more closely.
const SUSPICION: Duration = Duration::from_secs(10);
/// Weight of a new measurement in the running means.
const NEW_WEIGHT: f64 = 0.2;
/// Requests that carried more say how fast a link is; of others what nobody accounts for is charged.
const LINK_BYTES: usize = 64 * 1024;
/// Seconds that may pass without anybody accounting for them, beside what is accounted for times an allowance: threads and networks have other things to do.
const UNACCOUNTED: f64 = 0.01;
const ALLOWANCE: f64 = 1.5;
/// What passing rows on may take a server before the rest is its own, besides its bytes at a quarter of a home's link.
const HANDOVER: Duration = Duration::from_millis(100);
/// Bytes per second of a handover that nobody is charged for.
const HANDOVER_BYTES_PER_S: f64 = 3e6;
/// Passes of so few rows are sessions' steps: their time is that of reading the weights, not of computing.
const STEP_ROWS: usize = 4;

#[derive(Debug, Default)]
struct PeerRecord {
    failures: u32,
    banned_until: Option<Instant>,
    suspected_until: Option<Instant>,
    /// Until when refusals for lack of room count, how many seconds the last one hinted at, and how many there were.
    busy: Option<(Instant, f64, i32)>,
    /// Others found its results to be wrong.
    untrue: bool,
    /// When that was last said, whoever said it.
    wrong_at: Option<Instant>,
    /// Until when it is passed over because strangers said so, and how often they did.
    suspended: Option<(Instant, u32)>,
    /// Of one row in one block, in passes of many rows.
    row_seconds: Option<f64>,
    /// Of one block, in passes of few rows.
    step_seconds: Option<f64>,
    /// Bytes per second, as seen by requests that carried many.
    bytes_per_s: Option<f64>,
    queues: Recent<32>,
    /// Seconds that were waited and that nobody accounts for.
    unaccounted: Recent<8>,
    /// The same of when it was tried out; passes count for more.
    tried: Option<punctuality::Tried>,
    /// What earlier runs found of it.
    remembered: Option<f64>,
    pings: Recent<8>,
    /// Seconds that were waited for an answer, and the rows it was about.
    waits: VecDeque<(usize, f64)>,
}

/// The last few values. Their minimum is what a quiet network and an idle processor would show: one ping that waited
/// behind a handshake, or one pass behind this client's own others, does not change it.
#[derive(Debug, Default)]
struct Recent<const N: usize>(VecDeque<f64>);

impl<const N: usize> Recent<N> {
    fn add(&mut self, value: f64) {
        if self.0.len() == N {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// Forgets what was before, of which the least would count.
    fn replace(&mut self, value: f64) {
        self.0.clear();
        self.add(value);
    }

    fn least(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }
}

impl PeerRecord {
    /// Seconds of a round trip, as far as is known. The first ping may have waited behind handshakes: bad news is believed from the second one on.
    fn round_trip(&self, relayed: bool) -> f64 {
        self.ping(relayed).unwrap_or(estimate::usual_round_trip(relayed))
    }

    fn ping(&self, relayed: bool) -> Option<f64> {
        let usual = estimate::usual_round_trip(relayed);
        self.pings.least().filter(|ping| self.pings.0.len() > 1 || *ping < usual)
    }
}

/// Failures, bans and measured speed, by peer.
#[derive(Debug, Default)]
pub(crate) struct PeerTable {
    records: Mutex<HashMap<PeerId, PeerRecord>>,
    /// Where the next run learns who gave wrong results.
    reputation: Option<Reputation>,
}

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurement {
    /// Rows of the pass.
    pub(crate) rows: usize,
    /// Blocks that ran.
    pub(crate) blocks: usize,
    /// Bytes of rows that travelled between the client and the server while it was waited for.
    pub(crate) bytes: usize,
    /// From sending to the answer.
    pub(crate) elapsed: Duration,
    /// As the server reported it.
    pub(crate) computed: Duration,
    /// As the server reported it.
    pub(crate) queued: Duration,
    /// Time in which it passed rows on, as it reported it, as far as that is believed without anybody being charged.
    pub(crate) handed: Duration,
}

/// What a server says that passing rows on took, as far as that is believed.
pub(crate) fn believed_handover(claimed: Duration, bytes: usize) -> Duration {
    claimed.min(HANDOVER + Duration::from_secs_f64(bytes as f64 / HANDOVER_BYTES_PER_S))
}

/// What a pass took longer than anybody accounts for, beyond what happens to honest servers.
fn unaccounted(waited: f64, accounted: f64) -> f64 {
    (waited - ALLOWANCE * accounted - UNACCOUNTED).max(0.0)
}

fn mix(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + NEW_WEIGHT * (new - old))
}

impl PeerTable {
    /// With what earlier runs found out, as far as it still counts.
    pub(crate) fn remembering(reputation: Option<Reputation>) -> Self {
        let (now, now_s) = (Instant::now(), unix_s());
        let table = Self { records: Mutex::default(), reputation };
        for entry in table.reputation.iter().flat_map(|reputation| reputation.load(now_s)) {
            table.with(entry.peer, |record| match entry.charge {
                Charge::Untrue => record.untrue = true,
                Charge::Suspended { until_s, times } => {
                    let left = Duration::from_secs(until_s.saturating_sub(now_s)).min(LONGEST_SUSPENSION);
                    record.suspended = Some((now + left, times));
                }
                Charge::Late { .. } | Charge::OnTime => {
                    record.remembered = punctuality::left_of(entry.charge, now_s.saturating_sub(entry.at_s));
                    record.tried = record.remembered.map(punctuality::Tried::Charge);
                }
            });
        }
        table
    }

    fn with<T>(&self, peer: PeerId, change: impl FnOnce(&mut PeerRecord) -> T) -> T {
        change(lock(&self.records).entry(peer).or_default())
    }

    /// Has the next run know it. Seldom, and a short file.
    fn remember(&self, peer: PeerId, charge: impl FnOnce(u64) -> Charge) {
        if let Some(reputation) = &self.reputation {
            let at_s = unix_s();
            reputation.add(&[Entry { peer, charge: charge(at_s), at_s }], at_s);
        }
    }

    /// What `look` makes of what is known of a peer. Not a copy: this is asked for every request.
    fn of<T>(&self, peer: PeerId, look: impl FnOnce(&PeerRecord) -> T) -> T {
        let records = lock(&self.records);
        match records.get(&peer) {
            Some(record) => look(record),
            None => look(&PeerRecord::default()),
        }
    }

    /// Ends a ban and takes the measurement into account.
    pub(crate) fn succeeded(&self, peer: PeerId, measured: Measurement) {
        self.with(peer, |record| {
            record.failures = 0;
            record.banned_until = None;
            record.suspected_until = None;
            record.busy = None;
            // A server cannot make itself attractive by claiming less time than passed, nor cheaper than zero.
            let computed = measured.computed.min(measured.elapsed);
            let queued = measured.queued.min(measured.elapsed - computed);
            let block_seconds = computed.as_secs_f64() / measured.blocks.max(1) as f64;
            if measured.rows <= STEP_ROWS {
                record.step_seconds = Some(mix(record.step_seconds, block_seconds));
            } else {
                record.row_seconds = Some(mix(record.row_seconds, block_seconds / measured.rows as f64));
            }
            record.queues.add(queued.as_secs_f64());
            let way = record.pings.least().unwrap_or_default();
            let transfer = (measured.elapsed - computed - queued).as_secs_f64() - way;
            if measured.bytes >= LINK_BYTES && transfer > 1e-4 {
                record.bytes_per_s = Some(mix(record.bytes_per_s, measured.bytes as f64 / transfer));
            }
            if (1..LINK_BYTES).contains(&measured.bytes) {
                let round_trip = record.round_trip(false);
                let accounted = (computed + queued).as_secs_f64() + round_trip;
                record.unaccounted.add(unaccounted(measured.elapsed.as_secs_f64(), accounted));
            }
        });
    }

    /// A pass through a chain of servers took `waited`. What none of them accounts for is charged to those of which least is known, in equal parts; which one it was
    /// shows when others take their places. What earlier charges explain is charged to nobody again: else whoever was in a chain with someone late would be taken for as late, and with
    /// enough of those nobody would be left who is not.
    pub(crate) fn chained(&self, hops: &[(PeerId, Measurement)], waited: Duration) {
        let ends = [hops.first(), hops.last()].into_iter().flatten();
        let ways: f64 = ends.map(|(peer, _)| self.of(*peer, |record| record.round_trip(false)) / 2.0).sum();
        let of_hop = |(_, hop): &(PeerId, Measurement)| (hop.computed + hop.queued + hop.handed).as_secs_f64();
        let extra = unaccounted(waited.as_secs_f64(), ways + hops.iter().map(of_hop).sum::<f64>());
        let charges: Vec<(PeerId, Option<f64>)> =
            hops.iter().map(|(peer, _)| (*peer, self.of(*peer, |record| record.unaccounted.least()))).collect();
        if extra == 0.0 {
            return charges.iter().for_each(|(peer, _)| self.with(*peer, |record| record.unaccounted.add(0.0)));
        }
        let explained: f64 = charges.iter().filter_map(|(_, charge)| *charge).sum();
        let unexplained = extra - explained;
        if unexplained <= 0.0 {
            // They were charged too much between them.
            let late = charges.iter().filter_map(|(peer, charge)| Some((peer, charge.filter(|charge| *charge > 0.0)?)));
            return late.for_each(|(peer, charge)| {
                self.with(*peer, |record| record.unaccounted.replace(charge * extra / explained));
            });
        }
        // Of whom nothing is known, else who was late before, else all of them: whoever was on time may have begun to be late.
        let doubts: [fn(Option<f64>) -> bool; 3] =
            [|charge| charge.is_none(), |charge| charge.is_some_and(|charge| charge > 0.0), |_| true];
        let doubted = doubts.iter().find(|doubt| charges.iter().any(|(_, charge)| doubt(*charge)));
        let blamed = || charges.iter().filter(|(_, charge)| doubted.is_some_and(|doubt| doubt(*charge)));
        let each = unexplained / blamed().count().max(1) as f64;
        for (peer, charge) in blamed() {
            self.with(*peer, |record| match charge {
                // A share is no measurement, of which the least would be right: a better one takes its place.
                Some(charge) if *charge > 0.0 => record.unaccounted.replace(charge + each),
                _ => record.unaccounted.add(each),
            });
        }
    }

    /// Bans the peer, twice as long at each failure in a row, and returns for how long. Failures during a ban do not count:
    /// they are those of passes that were under way when the first one failed.
    pub(crate) fn failed(&self, peer: PeerId, now: Instant) -> Duration {
        self.with(peer, |record| {
            if let Some(until) = record.banned_until.filter(|until| now < *until) {
                return until - now;
            }
            record.failures = record.failures.saturating_add(1);
            let doublings = (record.failures - 1).min(16);
            let ban = (FIRST_BAN * 2u32.pow(doublings)).min(LONGEST_BAN);
            record.banned_until = Some(now + ban);
            ban
        })
    }

    /// For how long the planner should still avoid the peer, and after how many failures.
    pub(crate) fn ban(&self, peer: PeerId, now: Instant) -> Option<(Duration, u32)> {
        let until = self.of(peer, |record| {
            let banned = record.banned_until.map(|until| (until, record.failures));
            banned.into_iter().chain(record.suspended).filter(|(until, _)| now < *until).max()
        });
        until.map(|(until, times)| (until - now, times))
    }

    /// An answer about `rows` rows came after `wait`, with everything that lies between: the network, others, other servers.
    pub(crate) fn waited(&self, peer: PeerId, rows: usize, wait: Duration) {
        self.with(peer, |record| {
            if record.waits.len() == WAITS {
                record.waits.pop_front();
            }
            record.waits.push_back((rows, wait.as_secs_f64()));
        });
    }

    /// Seconds that an answer about `rows` rows takes on average; nothing if there was none yet.
    pub(crate) fn usual_wait(&self, peer: PeerId, rows: usize) -> Option<f64> {
        self.of(peer, |PeerRecord { waits, .. }| {
            let scaled = waits.iter().map(|&(of, wait)| wait * (rows as f64 / of.max(1) as f64).max(1.0));
            (!waits.is_empty()).then(|| scaled.sum::<f64>() / waits.len() as f64)
        })
    }

    /// The server had no room. Until it has shown otherwise its queue counts as long as it says, and as twice as long each
    /// time it says so again: in the end every other server is more attractive.
    pub(crate) fn busy(&self, peer: PeerId, hint: Duration, now: Instant) {
        self.with(peer, |record| {
            let before = record.busy.filter(|(until, ..)| now < *until).map_or(0, |(.., times)| times);
            record.busy = Some((now + BUSY_MEMORY.max(2 * hint), hint.as_secs_f64(), (before + 1).min(BUSY_DOUBLINGS)));
        });
    }

    /// Its results are wrong: never to be used again by this client.
    pub(crate) fn untrue(&self, peer: PeerId) {
        self.with(peer, |record| (record.untrue, record.wrong_at) = (true, Some(Instant::now())));
        self.remember(peer, |_| Charge::Untrue);
    }

    /// Strangers say that its results are wrong: like a ban, which no success ends.
    pub(crate) fn suspend(&self, peer: PeerId, now: Instant) {
        let (time, times) = self.with(peer, |record| {
            let times = record.suspended.map_or(0, |(_, times)| times).saturating_add(1);
            let time = (SUSPENSION * 2u32.pow((times - 1).min(8))).min(LONGEST_SUSPENSION);
            (record.suspended, record.wrong_at) = (Some((now + time, times)), Some(now));
            (time, times)
        });
        self.remember(peer, |now_s| Charge::Suspended { until_s: now_s + time.as_secs(), times });
    }

    /// Whether its results were found to be wrong since some time, by whomever.
    pub(crate) fn found_wrong_since(&self, peer: PeerId, since: Instant) -> bool {
        self.of(peer, |record| record.wrong_at.is_some_and(|at| at >= since))
    }

    /// Whether its results were found to be wrong.
    pub(crate) fn is_untrue(&self, peer: PeerId) -> bool {
        self.of(peer, |record| record.untrue)
    }

    /// It may be what kept a chain waiting.
    pub(crate) fn suspect(&self, peer: PeerId, now: Instant) {
        self.with(peer, |record| record.suspected_until = Some(now + SUSPICION));
    }

    /// Whether it kept a chain waiting not long ago and has answered nothing since.
    pub(crate) fn is_suspected(&self, peer: PeerId, now: Instant) -> bool {
        self.of(peer, |record| record.suspected_until.is_some_and(|until| now < until))
    }

    /// The last ping, as the network node shows it; it shows each for some time.
    pub(crate) fn pinged(&self, peer: PeerId, ping: Duration) {
        let ping = ping.as_secs_f64();
        self.with(peer, |record| {
            if record.pings.0.back() != Some(&ping) {
                record.pings.add(ping);
            }
        });
    }
}

#[cfg(test)]
mod tests;
