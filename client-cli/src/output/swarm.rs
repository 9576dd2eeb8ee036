//! Events about servers and routes.

use std::fmt::{self, Display};

use petals_client::{PeerId, ServerInfo, ServerState, Verification};
use serde::Serialize;

use super::Event;

/// A server failed a request; its blocks are routed anew.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HopFailed {
    /// Peer id.
    pub(crate) peer: String,
    /// Blocks it was to run, `A..B`.
    pub(crate) blocks: String,
    /// What happened.
    pub(crate) reason: String,
}

/// Servers did not pass a micro-batch on to each other; it is repeated through this machine.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RelayFailed {
    /// Peer id of who noticed.
    pub(crate) peer: String,
    /// Blocks it was to run, `A..B`.
    pub(crate) blocks: String,
    /// What happened.
    pub(crate) reason: String,
}

/// A server was much later than usual; another one answered instead.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outpaced {
    /// Peer id of who was late.
    pub(crate) peer: String,
    /// Blocks it was to run, `A..B`.
    pub(crate) blocks: String,
    /// Peer id of who answered.
    pub(crate) by: String,
    /// Seconds until the other one was asked.
    pub(crate) after_s: f64,
}

/// Other servers got something else than this one.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct UntrueResult {
    /// Peer id.
    pub(crate) peer: String,
    /// Blocks it ran, `A..B`.
    pub(crate) blocks: String,
    /// How its results differ.
    pub(crate) reason: String,
    /// Whether it is not used any more; else it is left alone for a time.
    pub(crate) certain: bool,
}

/// Two servers disagree, and there is no third one.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Disagreement {
    /// Peer id of whose result is used.
    pub(crate) peer: String,
    /// Peer id of who got something else.
    pub(crate) other: String,
    /// The blocks, `A..B`.
    pub(crate) blocks: String,
    /// How their results differ.
    pub(crate) reason: String,
}

/// Servers that are not used because their weights are others, though their model has the name.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OtherWeights {
    /// Peer ids.
    pub(crate) peers: Vec<String>,
}

/// What verification found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verified(pub(crate) Verification);

/// A server that the directory knows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Server {
    /// Peer id.
    pub(crate) peer: String,
    /// Blocks hosted, `A..B`.
    pub(crate) blocks: String,
    /// Blocks that it is about to host instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) moving_to: Option<String>,
    /// Life cycle.
    pub(crate) state: ServerState,
    /// Tokens per second through its whole span, as announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forward_tokens_per_s: Option<f32>,
    /// Tokens per second of one session through its whole span, as announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decode_tokens_per_s: Option<f32>,
    /// Requests waiting or running when it was announced.
    pub(crate) queue_depth: u32,
    /// Reached through a relay only, as it says.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) relayed: bool,
    /// Device that it computes on, or several with commas between.
    pub(crate) device: String,
    /// Dtype it computes in.
    pub(crate) dtype: String,
    /// Software version.
    pub(crate) version: String,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_name: Option<String>,
}

/// The chain of servers that a pass would use.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Route {
    /// Model id.
    pub(crate) model: String,
    /// In order of the blocks.
    pub(crate) hops: Vec<RouteHop>,
    /// Estimated seconds of a forward.
    pub(crate) seconds: f64,
    /// Rows of the pass that was planned.
    pub(crate) rows: usize,
    /// Whether people want to see what each hop costs.
    #[serde(skip)]
    pub(crate) explain: bool,
}

/// One hop of a [`Route`].
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RouteHop {
    /// Peer id.
    pub(crate) peer: String,
    /// Blocks it runs, `A..B`.
    pub(crate) blocks: String,
    /// Estimated seconds of the way to it, from this machine or the server in front.
    pub(crate) way_s: f64,
    /// Estimated seconds that it lets the pass wait for others.
    pub(crate) queue_s: f64,
    /// Estimated seconds of its blocks.
    pub(crate) compute_s: f64,
}

impl Server {
    /// What a server says of itself.
    pub(crate) fn new(peer: &PeerId, info: ServerInfo) -> Self {
        Self {
            peer: peer.to_string(),
            blocks: info.span.to_string(),
            moving_to: info.moving_to.map(|span| span.to_string()),
            state: info.state,
            forward_tokens_per_s: info.forward_tokens_per_s,
            decode_tokens_per_s: info.decode_tokens_per_s,
            queue_depth: info.queue_depth,
            relayed: info.relayed,
            device: info.device,
            dtype: info.dtype,
            version: info.version,
            public_name: info.public_name,
        }
    }
}

impl Event for HopFailed {
    const NAME: &'static str = "hop_failed";
}

impl Event for RelayFailed {
    const NAME: &'static str = "relay_failed";
}

impl Event for Outpaced {
    const NAME: &'static str = "outpaced";
}

impl Event for UntrueResult {
    const NAME: &'static str = "untrue_result";
}

impl Event for Disagreement {
    const NAME: &'static str = "disagreement";
}

impl Event for OtherWeights {
    const NAME: &'static str = "other_weights";
}

impl Event for Verified {
    const NAME: &'static str = "verification";
}

impl Event for Server {
    const NAME: &'static str = "server";
}

impl Event for Route {
    const NAME: &'static str = "route";
}

impl Display for HopFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, blocks, reason } = self;
        write!(f, "server {} failed on blocks {blocks} ({reason}), routing around it", short(peer))
    }
}

impl Display for RelayFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, blocks, reason } = self;
        write!(f, "no relay at server {} of blocks {blocks} ({reason}), going through this machine", short(peer))
    }
}

impl Display for Outpaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, blocks, by, after_s } = self;
        let (peer, by) = (short(peer), short(by));
        write!(f, "server {peer} was silent for {after_s:.1} s, {by} answered for blocks {blocks}")
    }
}

impl Display for UntrueResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, blocks, reason, certain } = self;
        let (peer, so) = (short(peer), if *certain { "not using it any more" } else { "leaving it alone for a time" });
        write!(f, "server {peer} gives wrong results for blocks {blocks} ({reason}), {so}")
    }
}

impl Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, other, blocks, reason } = self;
        let (peer, other) = (short(peer), short(other));
        write!(f, "servers {peer} and {other} disagree on blocks {blocks} ({reason}), and nobody else holds them")
    }
}

impl Display for OtherWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> = self.peers.iter().take(8).map(|peer| short(peer)).collect();
        let (count, more) = (self.peers.len(), if self.peers.len() > 8 { ", …" } else { "" });
        let servers = if count == 1 { "server has" } else { "servers have" };
        write!(
            f,
            "{count} {servers} other weights than those in use ({}{more}), which are not mixed with them: `petals-tune fingerprint --served` shows who              has what",
            named.join(", ")
        )
    }
}

impl Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verification { confirmed, unchecked, disputed, untrue } = self.0;
        write!(f, "verification: {confirmed} results confirmed, {disputed} disputed, {untrue} servers found out")?;
        if unchecked > 0 { write!(f, ", {unchecked} not checked for lack of another server") } else { Ok(()) }
    }
}

impl Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.public_name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        let state = format!("{:?}", self.state).to_lowercase();
        write!(f, "server {}{name}: blocks {}, {state}, {}", short(&self.peer), self.blocks, self.dtype)?;
        if !self.device.is_empty() {
            write!(f, " on {}", self.device)?;
        }
        f.write_str(if self.relayed { ", through a relay" } else { "" })?;
        match self.forward_tokens_per_s {
            Some(rate) => write!(f, ", {rate:.0} tokens/s"),
            None => Ok(()),
        }
    }
}

impl Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hops: Vec<String> =
            self.hops.iter().map(|hop| format!("{} via {}", hop.blocks, short(&hop.peer))).collect();
        let (ms, rows) = (self.seconds * 1e3, self.rows);
        write!(f, "route: {} (about {ms:.0} ms forward for {rows} tokens)", hops.join(" -> "))?;
        for hop in self.hops.iter().filter(|_| self.explain) {
            let [way, queue, compute] = [hop.way_s, hop.queue_s, hop.compute_s].map(|seconds| seconds * 1e3);
            write!(f, "\n  blocks {} via {}: ", hop.blocks, short(&hop.peer))?;
            write!(f, "way {way:.2} ms, queue {queue:.2} ms, blocks {compute:.2} ms")?;
        }
        Ok(())
    }
}

/// The end of a peer id, which is what differs.
pub(crate) fn short(peer: &str) -> String {
    match peer.char_indices().rev().nth(5) {
        Some((at, _)) => format!("…{}", &peer[at..]),
        None => peer.to_owned(),
    }
}
