//! Events of `petals-tune route --explain`.

use std::fmt::{self, Display};

use petals_client::{CostEstimate, Figure, Source};
use serde::Serialize;

use super::{Event, short};

/// A server that planning considered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Considered {
    /// Peer id.
    pub(crate) peer: String,
    /// Blocks hosted, `A..B`.
    pub(crate) blocks: String,
    /// What the pass is expected to cost there, and where each number comes from.
    #[serde(flatten)]
    pub(crate) cost: Option<CostEstimate>,
    /// Whether it is part of the route.
    pub(crate) chosen: bool,
    /// Why, or why not.
    pub(crate) reason: String,
}

/// One of the routes that the micro-batches of a training step take.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TrainingRoute {
    /// Peer id and blocks of each hop, in order of the blocks.
    pub(crate) hops: Vec<(String, String)>,
    /// Its part of the micro-batches.
    pub(crate) share: f64,
    /// Estimated seconds that its slowest server is busy with one.
    pub(crate) slowest_s: f64,
}

impl Event for Considered {
    const NAME: &'static str = "considered";
}

impl Event for TrainingRoute {
    const NAME: &'static str = "training_route";
}

impl Display for Considered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, blocks, cost, reason, .. } = self;
        write!(f, "server {}: blocks {blocks}, {reason}", short(peer))?;
        let Some(cost) = cost else { return Ok(()) };
        let ms = |figure: Figure| format!("{:.2} ms ({})", figure.value * 1e3, from(figure.source));
        write!(f, "; a block {}, queue {}", ms(cost.block_seconds), ms(cost.queue_seconds))?;
        write!(f, ", round trip {}", ms(cost.round_trip_seconds))?;
        write!(f, ", link {:.1} MB/s ({})", cost.bytes_per_s.value / 1e6, from(cost.bytes_per_s.source))?;
        if cost.load > 0.0 {
            write!(f, ", shared with {:.0} requests (announced)", cost.load)?;
        }
        f.write_str(if cost.relayed { ", through a relay" } else { "" })
    }
}

impl Display for TrainingRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hops: Vec<String> =
            self.hops.iter().map(|(peer, blocks)| format!("{blocks} via {}", short(peer))).collect();
        let (percent, ms) = (self.share * 100.0, self.slowest_s * 1e3);
        write!(f, "training: {percent:.0} % over {} (slowest stage about {ms:.0} ms)", hops.join(" -> "))
    }
}

fn from(source: Source) -> &'static str {
    match source {
        Source::Measured => "measured",
        Source::Announced => "announced",
        Source::Assumed => "assumed",
    }
}
