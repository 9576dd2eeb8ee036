//! Streams to the servers that a chain goes on to.
//!
//! A client names the next server by its id alone. Where that is, and whether it serves the next block at all, this node
//! reads from the directory's signed records: it dials nobody because a client says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use petals_protocol::{ModelId, Refusal, RelayToken, Request, Response, Span, Tensor};
use petals_swarm::{
    DirectoryEntry, LookupError, OpenError, PeerId, RequestError, RequestStream, StreamPath, SwarmHandle,
};
use tokio::time::timeout;

/// Longest search for a server, its connection and its greeting. Then the client lets the rows travel through itself.
const CONNECT_PATIENCE: Duration = Duration::from_secs(4);
/// A server that could not be reached is not tried again before this has passed, and the directory is not asked again
/// for the same block.
const PAUSE: Duration = Duration::from_secs(5);
/// What the directory said of a block is believed for this long.
const MAX_AGE: Duration = Duration::from_secs(60);
/// Streams kept open. Beyond, the one that was not used for longest goes.
const MAX_LINKS: usize = 64;

/// The server that the rows of a pass go on to.
#[derive(Debug, Clone)]
pub(crate) struct Next {
    pub(crate) peer: PeerId,
    pub(crate) token: RelayToken,
    /// The block that it runs them through first.
    pub(crate) block: u32,
}

/// Why rows were not passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("it is not known to serve block {0}")]
    NotAnnounced(u32),
    #[error("the directory does not answer: {0}")]
    Lookup(#[from] LookupError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("it does not return the greeting")]
    Greeting,
    #[error("not connected within {CONNECT_PATIENCE:?}")]
    TooSlow,
    #[error("it could not be reached just before")]
    JustFailed,
    #[error("{got} bytes are more than the {limit} that it takes")]
    TooLarge { got: u64, limit: u64 },
    #[error("it refuses: {0}")]
    Refused(Refusal),
    #[error("it answers another question")]
    Answer,
}

/// An open stream that was greeted.
#[derive(Debug)]
struct Link {
    stream: RequestStream,
    path: StreamPath,
    max_body: u64,
}

/// The stream to one server, or when it could not be reached. Locked while it is being opened, so that many passes open
/// one stream.
#[derive(Debug, Default)]
struct Slot {
    link: Option<Arc<Link>>,
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Used {
    slot: Arc<tokio::sync::Mutex<Slot>>,
    last: Instant,
}

/// What the directory said of a block, and when.
#[derive(Debug)]
struct Found {
    at: Instant,
    servers: Vec<DirectoryEntry>,
}

/// Passes rows on to other servers of the same model.
#[derive(Debug)]
pub(crate) struct RelayLinks {
    swarm: SwarmHandle,
    model: ModelId,
    links: Mutex<HashMap<PeerId, Used>>,
    /// By block; only those within and next to the span that is served here are ever asked for.
    found: tokio::sync::Mutex<HashMap<u32, Found>>,
}

impl RelayLinks {
    pub(crate) fn new(swarm: SwarmHandle, model: ModelId) -> Self {
        Self { swarm, model, links: Mutex::default(), found: tokio::sync::Mutex::default() }
    }

    /// Sends rows and waits until the request on the other side has them; returns their number of bytes.
    pub(crate) async fn pass_on(
        &self,
        next: &Next,
        tensors: Vec<Tensor>,
        patience: Duration,
    ) -> Result<u64, RelayError> {
        let link = timeout(CONNECT_PATIENCE, self.link(next)).await.map_err(|_| RelayError::TooSlow)??;
        let bytes = tensors.iter().map(|tensor| tensor.bytes().len() as u64).sum();
        if bytes > link.max_body {
            return Err(RelayError::TooLarge { got: bytes, limit: link.max_body });
        }
        match link.stream.request(Request::Relay { token: next.token }, tensors, patience).await?.0 {
            Response::Relayed => Ok(bytes),
            Response::Refused(refusal) => Err(RelayError::Refused(refusal)),
            _ => Err(RelayError::Answer),
        }
    }

    /// The stream to the next server, opened if there is none.
    async fn link(&self, next: &Next) -> Result<Arc<Link>, RelayError> {
        let peer = next.peer;
        let slot = match self.used(peer) {
            Some(slot) => slot,
            // Only who is announced gets a place in the table.
            None => {
                self.server(next).await?;
                self.insert(peer)
            }
        };
        let mut slot = slot.lock().await;
        if let Some(link) = slot.link.as_ref().filter(|link| link.stream.is_open() && !link.path.is_outdated()) {
            return Ok(link.clone());
        }
        if slot.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(RelayError::JustFailed);
        }
        // Stays if this future is dropped, because it took too long.
        slot.failed = Some(Instant::now());
        let server = self.server(next).await?;
        let link = match self.open(&server).await {
            Ok(link) => Arc::new(link),
            Err(error) => {
                // It may have moved.
                self.found.lock().await.remove(&next.block);
                return Err(error);
            }
        };
        *slot = Slot { link: Some(link.clone()), failed: None };
        Ok(link)
    }

    async fn open(&self, server: &DirectoryEntry) -> Result<Link, RelayError> {
        let stream = self.swarm.open_stream(server.peer, &server.addresses, CONNECT_PATIENCE).await?;
        let path = stream.path();
        let stream = RequestStream::new(stream);
        let hello = Request::Hello { model: self.model.clone() };
        match stream.request(hello, Vec::new(), CONNECT_PATIENCE).await?.0 {
            Response::Welcome(welcome) => Ok(Link { stream, path, max_body: welcome.limits.max_body }),
            Response::Refused(refusal) => Err(RelayError::Refused(refusal)),
            _ => Err(RelayError::Greeting),
        }
    }

    /// What the directory says of the server, if it serves the block.
    async fn server(&self, next: &Next) -> Result<DirectoryEntry, RelayError> {
        let Next { peer, block, .. } = *next;
        let unknown = || RelayError::NotAnnounced(block);
        if peer == self.swarm.local_peer() {
            return Err(unknown());
        }
        let span = Span::new(block, block.saturating_add(1)).map_err(|_| unknown())?;
        let mut found = self.found.lock().await;
        let is_peer = |server: &&DirectoryEntry| server.peer == peer;
        if let Some(known) = found.get(&block) {
            let server = known.servers.iter().find(is_peer).cloned();
            match server {
                Some(server) if known.at.elapsed() < MAX_AGE => return Ok(server),
                None if known.at.elapsed() < PAUSE => return Err(unknown()),
                _ => {}
            }
        }
        let looked_up = self.swarm.lookup(&self.model, span).await;
        let servers = looked_up.as_ref().map(Vec::clone).unwrap_or_default();
        found.insert(block, Found { at: Instant::now(), servers });
        looked_up?.into_iter().find(|server| is_peer(&server)).ok_or_else(unknown)
    }

    fn used(&self, peer: PeerId) -> Option<Arc<tokio::sync::Mutex<Slot>>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let used = links.get_mut(&peer)?;
        used.last = Instant::now();
        Some(used.slot.clone())
    }

    fn insert(&self, peer: PeerId) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if !links.contains_key(&peer) && links.len() >= MAX_LINKS {
            let oldest = links.iter().min_by_key(|(_, used)| used.last).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| links.remove(&oldest));
        }
        links.entry(peer).or_insert_with(|| Used { slot: Arc::default(), last: Instant::now() }).slot.clone()
    }
}
