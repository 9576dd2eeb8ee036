//! The client's picture of the swarm: who serves the model, and open streams to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{DirectoryEntry, PeerId, SwarmHandle, network_of};

use super::accepted::Accepted;
use super::hop::{HopConnection, HopError, ServerWork, Traffic, TrafficCount};
use super::peers::{CostEstimate, Measurement, PassSize, PeerTable};
use super::reputation::Reputation;
use super::weights::{KnownWeights, Weights};
use crate::lock::lock;
use crate::planner::{Candidate, Exclusion, RouteRules};

/// A view older than this is refreshed while it goes on being used, as far as `refresh` says.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Longest wait for a connection and the greeting on it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

mod notes;
mod refresh;

use refresh::Refreshed;

type Slot = Arc<tokio::sync::Mutex<Option<Arc<HopConnection>>>>;

/// A server as the directory describes it.
#[derive(Debug, Clone)]
struct Known {
    entry: Arc<DirectoryEntry>,
    /// Milliseconds of a round trip to servers behind it, as it says.
    next: Arc<[(PeerId, f32)]>,
    /// Why its weights keep it from being used.
    weights: Option<Exclusion>,
    /// When it said so.
    seen: Instant,
}

impl Known {
    fn new(entry: DirectoryEntry, weights: &Weights) -> Self {
        let (weights, next) = (weights.exclusion(&entry.info), entry.info.next_pings.iter());
        let next = next.filter_map(|(peer, ping)| Some((peer.parse().ok()?, *ping))).collect();
        Self { entry: Arc::new(entry), next, weights, seen: Instant::now() }
    }
}

/// A server, what is known of it, and what a pass is expected to cost there.
#[derive(Debug, Clone)]
pub(crate) struct Considered {
    pub(crate) candidate: Candidate,
    pub(crate) cost: CostEstimate,
}

/// Servers of one model as the directory and this client's own experience know them.
#[derive(Debug)]
pub(crate) struct SwarmView {
    swarm: SwarmHandle,
    model: ModelId,
    blocks: Span,
    servers: Mutex<HashMap<PeerId, Known>>,
    /// What the last lookup was told; held while one runs, so that many waiting passes ask once.
    refreshed: tokio::sync::Mutex<Option<Refreshed>>,
    slots: Mutex<HashMap<PeerId, Slot>>,
    weights: Weights,
    accepted: Accepted,
    rules: RouteRules,
    peers: PeerTable,
    traffic: Arc<Traffic>,
    /// Counts what may change a route: failures, refusals, news of the directory.
    version: AtomicU64,
}

impl SwarmView {
    /// Of a model whose weights are these, or those that most servers have.
    pub(crate) fn new(
        swarm: SwarmHandle,
        model: ModelId,
        blocks: Span,
        weights: Option<&KnownWeights>,
        accepted: Accepted,
        rules: RouteRules,
        reputation: Option<Reputation>,
    ) -> Self {
        Self {
            weights: Weights::new(blocks, weights),
            accepted,
            rules,
            swarm,
            model,
            blocks,
            servers: Mutex::default(),
            refreshed: tokio::sync::Mutex::new(None),
            slots: Mutex::default(),
            peers: PeerTable::remembering(reputation),
            traffic: Arc::default(),
            version: AtomicU64::new(0),
        }
    }

    /// Another number after anything that may change a route.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Something did.
    pub(crate) fn changed(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    /// Servers that are online, as planning `pass` needs them. Those in `without` are excluded for the reason given. With
    /// `direct`, servers may pass rows on to each other.
    pub(crate) fn candidates(
        &self,
        pass: PassSize,
        direct: bool,
        without: &HashSet<PeerId>,
        why: Exclusion,
    ) -> Vec<Candidate> {
        let considered = self.considered(pass, direct, &|peer| without.contains(&peer).then_some(why));
        considered.into_iter().map(|considered| considered.candidate).collect()
    }

    /// As [`Self::candidates`], with everything that is known of them.
    pub(crate) fn considered(
        &self,
        pass: PassSize,
        direct: bool,
        without: &dyn Fn(PeerId) -> Option<Exclusion>,
    ) -> Vec<Considered> {
        let servers: Vec<Known> = lock(&self.servers).values().cloned().collect();
        let usable = |server: &&Known| {
            let DirectoryEntry { peer, info, .. } = &*server.entry;
            info.state == ServerState::Online && self.max_rows(*peer).is_none_or(|max| pass.rows <= max)
        };
        let mut considered = Vec::with_capacity(servers.len());
        for server in servers.iter().filter(usable) {
            let DirectoryEntry { peer, info, .. } = &*server.entry;
            let (peer, cost) = (*peer, self.cost_at(*peer, info, pass));
            let next = server.next.iter().map(|(peer, ping)| (*peer, cost.next_way(*ping, pass)));
            let candidate = Candidate {
                peer,
                span: info.span,
                block_seconds: cost.block_seconds.value,
                queue_seconds: cost.queue_seconds.value,
                load: cost.load,
                latency_seconds: cost.latency_seconds(),
                transfer_seconds: cost.transfer_seconds(pass.bytes),
                next: if direct { next.collect() } else { HashMap::new() },
                banned: self.peers.ban(peer, Instant::now()).is_some(),
                punctuality: self.peers.punctuality(peer),
                excluded: self.excluded(peer, info).or(server.weights).or_else(|| without(peer)),
            };
            considered.push(Considered { candidate, cost });
        }
        considered
    }

    /// Why a server is not used for anything.
    fn excluded(&self, peer: PeerId, info: &ServerInfo) -> Option<Exclusion> {
        let untrue = self.peers.is_untrue(peer).then_some(Exclusion::Untrue);
        untrue.or_else(|| self.accepted.exclusion(info))
    }

    /// Whether servers that compute in this dtype may be used.
    pub(crate) fn accepts(&self, dtype: &str) -> bool {
        self.accepted.accepts(dtype)
    }

    /// The network that a server is in, if it is on another machine.
    pub(crate) fn network(&self, peer: PeerId) -> Option<IpAddr> {
        network_of(&lock(&self.servers).get(&peer)?.entry.addresses)
    }

    /// Why a server's weights keep it from being used.
    pub(crate) fn weights_exclusion(&self, peer: PeerId) -> Option<Exclusion> {
        lock(&self.servers).get(&peer)?.weights
    }

    /// Servers that are not used because they have other weights, when there are new ones.
    pub(crate) fn other_weights(&self) -> Option<Vec<PeerId>> {
        self.weights.news()
    }

    fn cost_at(&self, peer: PeerId, info: &ServerInfo, pass: PassSize) -> CostEstimate {
        if let Some(ping) = self.swarm.ping(&peer) {
            self.peers.pinged(peer, ping);
        }
        let own = self.open(peer).map_or(0, |open| open.under_way());
        self.peers.estimate(peer, info, pass, own)
    }

    /// What `pass` is expected to cost at a known server.
    pub(crate) fn cost(&self, peer: PeerId, pass: PassSize) -> Option<CostEstimate> {
        let entry = lock(&self.servers).get(&peer)?.entry.clone();
        Some(self.cost_at(peer, &entry.info, pass))
    }

    /// What a known server says of itself.
    pub(crate) fn info(&self, peer: PeerId) -> Option<ServerInfo> {
        lock(&self.servers).get(&peer).map(|known| known.entry.info.clone())
    }

    /// When a server last answered anything on the stream that is open to it.
    pub(crate) fn last_heard(&self, peer: PeerId) -> Option<Instant> {
        Some(self.open(peer)?.last_heard())
    }

    /// The stream to a server, if one is open already.
    fn open(&self, peer: PeerId) -> Option<Arc<HopConnection>> {
        let slot = lock(&self.slots).get(&peer)?.clone();
        let open = slot.try_lock().ok()?.clone();
        open.filter(|open| open.is_open())
    }

    /// What this client has experienced with each server.
    pub(crate) fn peers(&self) -> &PeerTable {
        &self.peers
    }

    /// Everything known of the servers, for people.
    pub(crate) fn servers(&self) -> Vec<(PeerId, ServerInfo)> {
        let known = lock(&self.servers);
        let mut servers: Vec<_> = known.values().map(|s| (s.entry.peer, s.entry.info.clone())).collect();
        servers.sort_by_key(|(peer, info)| (info.span, *peer));
        servers
    }

    /// Rows of a pass that a connected server accepts.
    fn max_rows(&self, peer: PeerId) -> Option<usize> {
        Some(self.open(peer)?.limits.max_rows as usize)
    }

    /// The stream to `peer`, opened if there is none. Others who want the same one wait for this.
    pub(crate) async fn connection(&self, peer: PeerId, patience: Duration) -> Result<Arc<HopConnection>, HopError> {
        let shared = lock(&self.slots).entry(peer).or_default().clone();
        let mut slot = shared.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| open.is_open() && !open.is_outdated()) {
            return Ok(open.clone());
        }
        // Whoever waited here while another failed does not try the same again.
        if !lock(&self.slots).get(&peer).is_some_and(|current| Arc::ptr_eq(current, &shared)) {
            return Err(HopError::Lost);
        }
        let entry = lock(&self.servers).get(&peer).map(|known| known.entry.clone()).ok_or(HopError::Lost)?;
        let patience = patience.min(CONNECT_PATIENCE);
        let opening = HopConnection::open(&self.swarm, &entry, &self.model, patience, self.traffic.clone());
        let opened = tokio::time::timeout(patience, opening).await.map_err(|_| HopError::Timeout(patience))??;
        // What the server says itself is newer than what the directory has.
        let fresh = DirectoryEntry { info: opened.info.clone(), ..DirectoryEntry::clone(&entry) };
        let fresh = Known::new(fresh, &self.weights);
        let other = fresh.weights;
        if let Some(known) = lock(&self.servers).get_mut(&peer) {
            *known = fresh;
        }
        if let Some(why) = other {
            self.changed();
            return Err(HopError::Weights(why));
        }
        Ok(slot.insert(Arc::new(opened)).clone())
    }

    /// After a failure: bans the peer, closes its stream, and returns the ban.
    pub(crate) fn failed(&self, peer: PeerId) -> Duration {
        lock(&self.slots).remove(&peer);
        self.changed();
        self.peers.failed(peer, Instant::now())
    }

    /// The server has no room for a request now.
    pub(crate) fn busy(&self, peer: PeerId, hint: Duration) {
        self.peers.busy(peer, hint, Instant::now());
        self.changed();
    }

    /// Others found the server's results to be wrong. It is not used any more.
    pub(crate) fn untrue(&self, peer: PeerId) {
        lock(&self.slots).remove(&peer);
        self.peers.untrue(peer);
        self.changed();
    }

    /// Others that nobody trusts say that its results are wrong. It is used where nobody else is left.
    pub(crate) fn suspend(&self, peer: PeerId) {
        lock(&self.slots).remove(&peer);
        self.peers.suspend(peer, Instant::now());
        self.changed();
    }

    /// The server no longer hosts what the directory says.
    pub(crate) fn forget(&self, peer: PeerId) {
        lock(&self.slots).remove(&peer);
        lock(&self.servers).remove(&peer);
        self.changed();
    }

    pub(crate) fn succeeded(&self, peer: PeerId, measured: Measurement) {
        self.weights.used();
        self.peers.succeeded(peer, measured);
    }

    pub(crate) fn traffic(&self) -> TrafficCount {
        self.traffic.count()
    }

    pub(crate) fn work(&self) -> BTreeMap<PeerId, ServerWork> {
        self.traffic.servers()
    }
}

/// Whether a slot holds a usable stream; one that is just being opened does not count.
fn is_open(slot: &Slot) -> bool {
    slot.try_lock().is_ok_and(|slot| slot.as_ref().is_some_and(|open| open.is_open()))
}
