//! The client's picture of the swarm: who serves the model, and open streams to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{DirectoryEntry, LookupError, PeerId, SwarmHandle};

use crate::hop::{HopConnection, HopError, ServerWork, Traffic, TrafficCount, lock};
use crate::peers::{Measurement, PeerTable};
use crate::planner::Candidate;

/// A view older than this is refreshed before it is used again.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Longest wait for a connection and the greeting on it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

type Slot = Arc<tokio::sync::Mutex<Option<Arc<HopConnection>>>>;

/// Servers of one model as the directory and this client's own experience know them.
#[derive(Debug)]
pub(crate) struct SwarmView {
    swarm: SwarmHandle,
    model: ModelId,
    blocks: Span,
    servers: Mutex<HashMap<PeerId, DirectoryEntry>>,
    /// When the last lookup ended; held while one runs, so that many waiting passes ask once.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    slots: Mutex<HashMap<PeerId, Slot>>,
    peers: PeerTable,
    traffic: Arc<Traffic>,
}

impl SwarmView {
    pub(crate) fn new(swarm: SwarmHandle, model: ModelId, blocks: Span) -> Self {
        Self {
            swarm,
            model,
            blocks,
            servers: Mutex::default(),
            refreshed: tokio::sync::Mutex::new(None),
            slots: Mutex::default(),
            peers: PeerTable::default(),
            traffic: Arc::default(),
        }
    }

    /// Asks the directory if the last answer is older than `max_age`.
    pub(crate) async fn refresh(&self, max_age: Duration) -> Result<(), LookupError> {
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.is_some_and(|at| at.elapsed() < max_age) {
            return Ok(());
        }
        let found = match self.swarm.lookup(&self.model, self.blocks).await {
            Ok(found) => found,
            // What was known is better than nothing, and asking again at once is no better than this time.
            Err(error) if !lock(&self.servers).is_empty() => {
                tracing::debug!(%error, "the directory does not answer, keeping the known servers");
                *refreshed = Some(Instant::now());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut fresh: HashMap<PeerId, DirectoryEntry> = found.into_iter().map(|e| (e.peer, e)).collect();
        // A lookup may miss some; a server with an open stream is there whatever the directory says.
        let connected: Vec<PeerId> =
            lock(&self.slots).iter().filter(|(_, slot)| is_open(slot)).map(|(p, _)| *p).collect();
        let mut servers = lock(&self.servers);
        for peer in connected {
            if let Some(known) = servers.remove(&peer) {
                fresh.entry(peer).or_insert(known);
            }
        }
        *servers = fresh;
        *refreshed = Some(Instant::now());
        Ok(())
    }

    /// Servers that are online, as planning needs them for passes of `rows` rows.
    pub(crate) async fn candidates(&self, rows: usize) -> Result<Vec<Candidate>, LookupError> {
        self.refresh(MAX_AGE).await?;
        let servers: Vec<DirectoryEntry> = lock(&self.servers).values().cloned().collect();
        let mut candidates = Vec::with_capacity(servers.len());
        let usable = |server: &&DirectoryEntry| {
            server.info.state == ServerState::Online && self.max_rows(server.peer).is_none_or(|max| rows <= max)
        };
        for server in servers.iter().filter(usable) {
            let rtt = self.swarm.ping(&server.peer);
            let (block_seconds, overhead_seconds) = self.peers.estimate(server.peer, &server.info, rtt, rows);
            let banned = self.peers.is_banned(server.peer, Instant::now());
            let (peer, span) = (server.peer, server.info.span);
            candidates.push(Candidate { peer, span, block_seconds, overhead_seconds, banned });
        }
        Ok(candidates)
    }

    /// Everything known of the servers, for people.
    pub(crate) fn servers(&self) -> Vec<(PeerId, ServerInfo)> {
        let mut servers: Vec<_> = lock(&self.servers).values().map(|e| (e.peer, e.info.clone())).collect();
        servers.sort_by_key(|(peer, info)| (info.span, *peer));
        servers
    }

    /// Rows of a pass that a connected server accepts.
    fn max_rows(&self, peer: PeerId) -> Option<usize> {
        let slot = lock(&self.slots).get(&peer)?.clone();
        let connection = slot.try_lock().ok()?;
        connection.as_ref().map(|open| open.limits.max_rows as usize)
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
        let entry = lock(&self.servers).get(&peer).cloned().ok_or(HopError::Lost)?;
        let patience = patience.min(CONNECT_PATIENCE);
        let opening = HopConnection::open(&self.swarm, &entry, &self.model, patience, self.traffic.clone());
        let opened = tokio::time::timeout(patience, opening).await.map_err(|_| HopError::Timeout(patience))??;
        // What the server says itself is newer than what the directory has.
        if let Some(known) = lock(&self.servers).get_mut(&peer) {
            known.info = opened.info.clone();
        }
        Ok(slot.insert(Arc::new(opened)).clone())
    }

    /// After a failure: bans the peer, closes its stream, and returns the ban.
    pub(crate) fn failed(&self, peer: PeerId) -> Duration {
        lock(&self.slots).remove(&peer);
        self.peers.failed(peer, Instant::now())
    }

    /// The server no longer hosts what the directory says.
    pub(crate) fn forget(&self, peer: PeerId) {
        lock(&self.slots).remove(&peer);
        lock(&self.servers).remove(&peer);
    }

    pub(crate) fn succeeded(&self, peer: PeerId, measured: Measurement) {
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
