//! What the page shows, as JSON.

use petals_protocol::{InUse, ServerInfo, ServerState, Span};
use petals_swarm::{ModelStatus, PeerId};
use serde::Serialize;

use super::history::History;

/// Servers of a model that are shown; a page of more is of no use to anybody.
pub(crate) const MOST_SERVERS: usize = 512;
/// Runs of weak blocks that are named.
const MOST_WEAK: usize = 5;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct State {
    /// Of this form of the JSON.
    pub(crate) format: u32,
    pub(crate) version: &'static str,
    /// `node` or `client`.
    pub(crate) role: &'static str,
    pub(crate) now_ms: u64,
    pub(crate) peer: String,
    /// Why it is not ready, if it is not.
    pub(crate) not_ready: Option<String>,
    /// Peers that this program is connected to.
    pub(crate) connected: usize,
    /// Milliseconds since the swarm was last asked; nothing before its first answer.
    pub(crate) looked_ms_ago: Option<u64>,
    pub(crate) models: Vec<Model>,
    pub(crate) routes: Vec<ShownRoute>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) join: Option<JoinLines>,
    pub(crate) history: History,
}

/// A model and who serves it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Model {
    pub(crate) model: String,
    pub(crate) blocks: u32,
    /// Ranges that nobody serves.
    pub(crate) missing: Vec<[u32; 2]>,
    /// Servers of each block that serve it now and answer.
    pub(crate) holders: Vec<u32>,
    /// Tokens per second of each block, of those servers together, as they say.
    pub(crate) tokens_per_s: Vec<f32>,
    /// The blocks that are served worst.
    pub(crate) weakest: Vec<Weak>,
    pub(crate) servers: Vec<Server>,
    /// Servers that are not shown, because there are too many.
    pub(crate) left_out: usize,
}

/// Neighbouring blocks that are served equally badly.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Weak {
    pub(crate) blocks: [u32; 2],
    pub(crate) servers: u32,
    pub(crate) tokens_per_s: f32,
}

/// A server, as it says itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Server {
    pub(crate) peer: String,
    pub(crate) name: Option<String>,
    pub(crate) blocks: [u32; 2],
    pub(crate) moving_to: Option<[u32; 2]>,
    pub(crate) state: ServerState,
    pub(crate) contact: Contact,
    pub(crate) ping_ms: Option<f64>,
    pub(crate) device: String,
    pub(crate) dtype: String,
    pub(crate) version: String,
    pub(crate) forward_tokens_per_s: Option<f32>,
    pub(crate) decode_tokens_per_s: Option<f32>,
    pub(crate) network_bytes_per_s: Option<f32>,
    pub(crate) served_tokens: Option<u64>,
    pub(crate) queue: u32,
    pub(crate) cache: Option<InUse>,
    pub(crate) cache_tokens_left: Option<u64>,
    pub(crate) stash: Option<InUse>,
    pub(crate) relayed: bool,
    /// Seconds since it wrote this.
    pub(crate) age_s: u64,
}

/// What this program itself knows of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contact {
    /// It is this program.
    Own,
    /// There is a connection.
    Connected,
    /// There was one, or it answered when it was tried.
    Reached,
    /// It did not answer when it was last tried.
    Silent,
    /// It was not tried.
    Unknown,
}

/// A way through the servers.
#[derive(Debug, Clone, Serialize)]
pub struct ShownRoute {
    /// Of which model.
    pub model: String,
    /// Whether its times were measured on passes of this program, or are expected.
    pub measured: bool,
    /// Rows of the pass.
    pub rows: usize,
    /// Seconds of all of it.
    pub seconds: f64,
    /// In the order of the blocks.
    pub hops: Vec<RouteHop>,
}

/// A part of a way.
#[derive(Debug, Clone, Serialize)]
pub struct RouteHop {
    /// Who.
    pub peer: String,
    /// Which blocks.
    pub blocks: [u32; 2],
    /// Seconds on the way.
    pub way_s: f64,
    /// Seconds of waiting for others there.
    pub queue_s: f64,
    /// Seconds of computation.
    pub compute_s: f64,
}

/// Something that did not go as it should.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// When it last happened, in Unix milliseconds.
    pub time_ms: u64,
    /// Which peer it is about.
    pub peer: String,
    /// Which blocks it is about, if any.
    pub blocks: Option<String>,
    /// What.
    pub what: String,
    /// How often in a row.
    pub times: u64,
}

/// Lines to paste on other machines.
#[derive(Debug, Clone, Serialize)]
pub struct JoinLines {
    /// To serve.
    pub node: String,
    /// To use what is served.
    pub client: String,
    /// Whether they work on this machine alone.
    pub this_machine_only: bool,
}

pub(crate) fn ends(span: Span) -> [u32; 2] {
    [span.start(), span.end()]
}

impl Model {
    /// A model as the swarm describes it; `contact` says what this program itself knows of a server.
    pub(crate) fn new(status: &ModelStatus, contact: impl Fn(&PeerId) -> (Contact, Option<f64>)) -> Self {
        let blocks = status.blocks as usize;
        let (mut holders, mut tokens_per_s) = (vec![0_u32; blocks], vec![0.0_f32; blocks]);
        let mut servers = Vec::new();
        for ((peer, info), age) in status.servers.iter().zip(&status.ages) {
            let (contact, ping_ms) = contact(peer);
            if info.state == ServerState::Online && contact != Contact::Silent {
                for block in info.span.blocks().map(|block| block as usize).filter(|block| *block < blocks) {
                    holders[block] += 1;
                    tokens_per_s[block] += info.forward_tokens_per_s.unwrap_or_default();
                }
            }
            if servers.len() < MOST_SERVERS {
                servers.push(Server::new(peer, info, *age, contact, ping_ms));
            }
        }
        let runs = runs(&holders, &tokens_per_s);
        let missing = runs.iter().filter(|run| run.servers == 0).map(|run| run.blocks).collect();
        let mut weakest = runs;
        weakest.sort_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s).then(a.servers.cmp(&b.servers)));
        weakest.truncate(MOST_WEAK);
        let left_out = status.servers.len() - servers.len();
        let model = status.model.to_string();
        Self { model, blocks: status.blocks, missing, holders, tokens_per_s, weakest, servers, left_out }
    }
}

/// Neighbouring blocks with the same servers and speed, as one.
fn runs(holders: &[u32], tokens_per_s: &[f32]) -> Vec<Weak> {
    let mut runs: Vec<Weak> = Vec::new();
    for (block, (servers, speed)) in (0_u32..).zip(holders.iter().zip(tokens_per_s)) {
        match runs.last_mut() {
            Some(run) if run.servers == *servers && run.tokens_per_s == *speed => run.blocks[1] = block + 1,
            _ => runs.push(Weak { blocks: [block, block + 1], servers: *servers, tokens_per_s: *speed }),
        }
    }
    runs
}

impl Server {
    fn new(peer: &PeerId, info: &ServerInfo, age_s: u64, contact: Contact, ping_ms: Option<f64>) -> Self {
        Self {
            peer: peer.to_string(),
            name: info.public_name.clone(),
            blocks: ends(info.span),
            moving_to: info.moving_to.map(ends),
            state: info.state,
            contact,
            ping_ms,
            device: info.device.clone(),
            dtype: info.dtype.clone(),
            version: info.version.clone(),
            forward_tokens_per_s: info.forward_tokens_per_s,
            decode_tokens_per_s: info.decode_tokens_per_s,
            network_bytes_per_s: info.network_bytes_per_s,
            served_tokens: info.served_tokens,
            queue: info.queue_depth,
            cache: info.cache,
            cache_tokens_left: info.cache_tokens_left,
            stash: info.stash,
            relayed: info.relayed,
            age_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_silent_holds_nothing_and_the_worst_blocks_come_first() {
        let server = |from: u32, to: u32, rate: f32| {
            let model = "demo@0000000000000001".parse().unwrap();
            let info = ServerInfo::new(model, Span::new(from, to).unwrap(), ServerState::Online);
            (PeerId::random(), ServerInfo { forward_tokens_per_s: Some(rate), ..info })
        };
        let servers = vec![server(0, 4, 10.0), server(2, 6, 5.0), server(6, 8, 50.0)];
        let silent = servers[2].0;
        let status = ModelStatus::new("demo@0000000000000001".parse().unwrap(), 8, servers);
        let model =
            Model::new(&status, |peer| (if *peer == silent { Contact::Silent } else { Contact::Connected }, Some(1.0)));
        assert_eq!(model.holders, [1, 1, 2, 2, 1, 1, 0, 0]);
        assert_eq!(model.tokens_per_s[2], 15.0);
        assert_eq!((model.missing.as_slice(), model.servers.len()), (&[[6, 8]][..], 3));
        let weakest: Vec<_> = model.weakest.iter().map(|weak| (weak.blocks, weak.servers)).collect();
        assert_eq!(weakest, [([6, 8], 0), ([4, 6], 1), ([0, 2], 1), ([2, 4], 2)]);
    }

    #[test]
    fn a_crowd_is_cut() {
        let model: petals_protocol::ModelId = "demo@0000000000000001".parse().unwrap();
        let info = ServerInfo::new(model.clone(), Span::new(0, 2).unwrap(), ServerState::Online);
        let servers = (0..MOST_SERVERS + 3).map(|_| (PeerId::random(), info.clone())).collect();
        let model = Model::new(&ModelStatus::new(model, 2, servers), |_| (Contact::Unknown, None));
        assert_eq!((model.servers.len(), model.left_out), (MOST_SERVERS, 3));
        assert_eq!(model.holders[0] as usize, MOST_SERVERS + 3, "all count");
    }
}
