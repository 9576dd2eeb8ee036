//! What a request to a server is expected to cost, and where each number comes from.

use std::time::Instant;

use petals_protocol::ServerInfo;
use petals_swarm::PeerId;
use serde::Serialize;

use super::{PeerRecord, PeerTable, STEP_ROWS};

/// Seconds for one row in one block where nothing was measured or announced: a middling CPU.
const UNKNOWN_ROW_SECONDS: f64 = 50e-6;
/// Seconds of a round trip where nothing was measured: a link within a country.
const UNKNOWN_ROUND_TRIP: f64 = 0.03;
/// Bytes per second where nothing was measured or announced: a home's link.
const UNKNOWN_BYTES_PER_S: f64 = 12.5e6;
/// Seconds that a way through a relay costs besides: its bytes are a third machine's, which others need too.
const RELAY_SECONDS: f64 = 0.01;
/// Requests of others that are believed to share a server.
const MOST_LOAD: u32 = 16;

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This client saw it.
    Measured,
    /// The server says so.
    Announced,
    /// Nobody knows; what is usual.
    Assumed,
}

/// A number and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// In the unit of its field.
    pub value: f64,
    /// Where it comes from.
    pub source: Source,
}

/// What a request to a server is expected to cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CostEstimate {
    /// Seconds of the pass in one block.
    pub block_seconds: Figure,
    /// Seconds that it waits there for others.
    pub queue_seconds: Figure,
    /// Seconds of a round trip.
    pub round_trip_seconds: Figure,
    /// Bytes per second of its link.
    pub bytes_per_s: Figure,
    /// Requests of others that its time is shared with.
    pub load: f64,
    /// Reached through a relay only, which makes every way longer.
    pub relayed: bool,
}

/// The pass that is planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PassSize {
    /// Rows through each block.
    pub(crate) rows: usize,
    /// Bytes of these rows on the wire.
    pub(crate) bytes: usize,
}

impl CostEstimate {
    /// Seconds of one way between the client and the server, without the transfer.
    pub fn latency_seconds(&self) -> f64 {
        self.round_trip_seconds.value / 2.0 + if self.relayed { RELAY_SECONDS } else { 0.0 }
    }

    /// Seconds that rows of `bytes` bytes occupy its link.
    pub(crate) fn transfer_seconds(&self, bytes: usize) -> f64 {
        // A relay receives and sends every byte.
        let times = if self.relayed { 2.0 } else { 1.0 };
        times * bytes as f64 / self.bytes_per_s.value
    }

    /// Seconds from sending `pass` for `blocks` blocks to having the answer.
    pub(crate) fn seconds(&self, blocks: usize, pass: PassSize) -> f64 {
        let ways = 2.0 * (self.latency_seconds() + self.transfer_seconds(pass.bytes));
        ways + self.queue_seconds.value + blocks as f64 * self.block_seconds.value
    }
}

/// Seconds of a round trip to a server of which nothing is known.
pub(super) fn usual_round_trip(relayed: bool) -> f64 {
    if relayed { 2.0 * UNKNOWN_ROUND_TRIP } else { UNKNOWN_ROUND_TRIP }
}

/// The first number there is.
fn first(measured: Option<f64>, announced: Option<f64>, assumed: f64) -> Figure {
    match (measured, announced) {
        (Some(value), _) => Figure { value, source: Source::Measured },
        (None, Some(value)) => Figure { value, source: Source::Announced },
        (None, None) => Figure { value: assumed, source: Source::Assumed },
    }
}

impl PeerTable {
    /// What `pass` is expected to cost. `own` requests of this client are under way there.
    pub(crate) fn estimate(&self, peer: PeerId, info: &ServerInfo, pass: PassSize, own: usize) -> CostEstimate {
        self.of(peer, |record| record.estimate(info, pass, own))
    }
}

impl PeerRecord {
    fn estimate(&self, info: &ServerInfo, pass: PassSize, own: usize) -> CostEstimate {
        let blocks = info.span.len() as f64;
        let per_block =
            |rate: Option<f32>| rate.filter(|rate| *rate > 0.0).map(|rate| 1.0 / (f64::from(rate) * blocks));
        let rows = pass.rows as f64;
        let many = |seconds: Option<f64>| seconds.map(|seconds| seconds * rows);
        let (by_rows, announced) = (many(self.row_seconds), many(per_block(info.forward_tokens_per_s)));
        let block_seconds = if pass.rows <= STEP_ROWS {
            first(self.step_seconds, per_block(info.decode_tokens_per_s), UNKNOWN_ROW_SECONDS * rows).or(first(
                by_rows,
                announced,
                UNKNOWN_ROW_SECONDS * rows,
            ))
        } else {
            first(by_rows, announced, UNKNOWN_ROW_SECONDS * rows)
        };
        let load = info.queue_depth.min(MOST_LOAD).saturating_sub(own.min(MOST_LOAD as usize) as u32);
        let load = f64::from(load);
        let mut queue_seconds =
            first(self.queues.least(), Some(load * block_seconds.value * blocks).filter(|wait| *wait > 0.0), 0.0);
        if let Some((_, hint, times)) = self.busy.filter(|(until, ..)| Instant::now() < *until) {
            let value = queue_seconds.value.max(hint * f64::powi(2.0, times - 1));
            queue_seconds = Figure { value, source: Source::Announced };
        }
        // What was waited is paid for, whoever says that it took no time.
        if let Some(extra) = self.charge().filter(|extra| *extra > 0.0) {
            queue_seconds = Figure { value: queue_seconds.value + extra, source: Source::Measured };
        }
        CostEstimate {
            block_seconds,
            queue_seconds,
            round_trip_seconds: first(self.ping(info.relayed), None, usual_round_trip(info.relayed)),
            bytes_per_s: first(
                self.bytes_per_s,
                info.network_bytes_per_s.filter(|rate| *rate > 0.0).map(f64::from),
                UNKNOWN_BYTES_PER_S,
            ),
            load,
            relayed: info.relayed,
        }
    }
}

impl CostEstimate {
    /// Seconds of one way, transfer included, to a server that this one says answers its pings after `ping_ms`.
    pub(crate) fn next_way(&self, ping_ms: f32, pass: PassSize) -> f64 {
        f64::from(ping_ms) / 2e3 + self.transfer_seconds(pass.bytes)
    }
}

impl Figure {
    /// The other one, if this is only assumed.
    fn or(self, other: Self) -> Self {
        if self.source == Source::Assumed { other } else { self }
    }
}
