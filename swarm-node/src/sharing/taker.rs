//! Asks other servers of the model for files, before the hub is asked.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use petals_hub::{Found, Nearby, Wanted};
use petals_protocol::{ContentHash, ModelId, Span};
use petals_swarm::{DirectoryEntry, PeerId, PeerStream, SwarmHandle};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::source::{Failure, Missing, Patience, Pieces, Source};
use super::trust::{Trust, order};
use crate::lock::lock;

/// Longest wait for a stream.
const OPEN: Duration = Duration::from_secs(5);
const PATIENCE: Patience = Patience { silence: Duration::from_secs(10), put_off: Duration::from_secs(45) };
/// How long what the directory says is good enough.
const FRESH: Duration = Duration::from_secs(30);
/// Servers that are asked for one content.
const MOST_ASKED: usize = 16;
/// Pieces that wait to be written.
const PIECES: usize = 4;

/// Asks others. Clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Taker(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    joined: OnceLock<Joined>,
    trust: Mutex<Trust>,
    /// Who shares, and when the directory was asked.
    servers: tokio::sync::Mutex<Option<(Instant, Vec<DirectoryEntry>)>>,
}

/// The swarm, once this server is part of it.
#[derive(Debug)]
struct Joined {
    runtime: Handle,
    swarm: SwarmHandle,
    model: ModelId,
    blocks: Span,
}

/// Who has a content, and its bytes as they come.
type Giving = (PeerId, mpsc::Receiver<std::io::Result<Vec<u8>>>);

impl Taker {
    /// From here on the other servers of any of these blocks are asked. Must be called within a tokio runtime.
    pub(super) fn begin(&self, swarm: SwarmHandle, model: ModelId, blocks: Span) {
        // Once: there is one node to a process.
        let _ = self.0.joined.set(Joined { runtime: Handle::current(), swarm, model, blocks });
    }

    fn remember(&self, from: &str, what: impl FnOnce(&mut Trust, PeerId)) {
        if let Ok(peer) = from.parse() {
            what(&mut lock(&self.0.trust), peer);
        }
    }
}

impl Nearby for Taker {
    fn find(&self, wanted: &Wanted<'_>) -> Option<Found> {
        let joined = self.0.joined.get()?;
        let missing = Missing { hash: ContentHash::parse(wanted.sha256)?, size: wanted.size, start: wanted.start };
        let (tell, told) = oneshot::channel();
        joined.runtime.spawn(search(self.0.clone(), missing, tell));
        // The task ends by itself; if the runtime does, nobody has it.
        let (peer, pieces) = told.blocking_recv().ok()?;
        Some(Found { from: peer.to_string(), bytes: Box::new(Pieces::new(pieces)) })
    }

    fn failed(&self, from: &str) {
        self.remember(from, |trust, peer| trust.failed(peer, Instant::now()));
    }

    fn lied(&self, from: &str) {
        self.remember(from, Trust::lied);
    }
}

/// Asks one server after the other, and lets the first one that has the content send it.
async fn search(inner: Arc<Inner>, missing: Missing, tell: oneshot::Sender<Giving>) {
    let Some(joined) = inner.joined.get() else { return };
    for server in inner.candidates(joined, &missing.hash).await {
        match ask(joined, &server, missing).await {
            Ok(source) => {
                let (to, pieces) = mpsc::channel(PIECES);
                if tell.send((server.peer, pieces)).is_ok() {
                    source.pump(to).await;
                }
                return;
            }
            Err(Failure::NotGiven) => {}
            Err(failure) => {
                tracing::debug!(peer = %server.peer, %failure, "a server that passes files on did not");
                lock(&inner.trust).failed(server.peer, Instant::now());
            }
        }
    }
}

async fn ask(joined: &Joined, server: &DirectoryEntry, missing: Missing) -> Result<Source<PeerStream>, Failure> {
    let opened = joined.swarm.open_content_stream(server.peer, &server.addresses, OPEN).await;
    let stream = opened.map_err(|error| Failure::Broken(error.to_string()))?;
    // A relay carries its bytes for others and not for this; the hub is nearer.
    if stream.path().is_relayed() {
        return Err(Failure::NotGiven);
    }
    Source::ask(stream, missing, PATIENCE).await
}

impl Inner {
    /// Servers that may have a content, those that are to be asked first in front.
    async fn candidates(&self, joined: &Joined, hash: &ContentHash) -> Vec<DirectoryEntry> {
        let mut servers = self.sharing(joined).await;
        let chosen = lock(&self.trust).choose(servers.iter().map(|server| server.peer), Instant::now());
        // One behind a router, which others reach through a relay, is reached directly on its own network, where it was found by multicast.
        let near = |server: &DirectoryEntry| !server.info.relayed || joined.swarm.is_connected(&server.peer);
        servers.retain(|server| chosen.contains(&server.peer) && near(server));
        let local = joined.swarm.local_peer();
        servers.sort_by_key(|server| order(hash, &local, &server.peer, joined.swarm.ping(&server.peer)));
        servers.truncate(MOST_ASKED);
        servers
    }

    /// Servers that say that they pass files on.
    async fn sharing(&self, joined: &Joined) -> Vec<DirectoryEntry> {
        // Whoever comes while the directory is asked waits for the same answer.
        let mut known = self.servers.lock().await;
        if let Some((when, servers)) = known.as_ref()
            && when.elapsed() < FRESH
        {
            return servers.clone();
        }
        let mut servers = joined.swarm.lookup(&joined.model, joined.blocks).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "nobody can be asked who passes files on");
            Vec::new()
        });
        let local = joined.swarm.local_peer();
        servers.retain(|server| server.info.shares_weights && server.peer != local);
        *known = Some((Instant::now(), servers.clone()));
        servers
    }
}
