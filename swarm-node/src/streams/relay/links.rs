//! Streams to the servers that a chain goes on to.
//!
//! A client names the next server by its id alone. Where that is, and whether it serves the next block at all, this node
//! reads from the directory's signed records: it dials nobody because a client says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_protocol::{ModelId, Refusal, RelayToken, Request, Response, Span, Tensor};
use petals_swarm::{
    DirectoryEntry, LookupError, OpenError, Party, PeerId, RequestError, RequestStream, StreamPath, SwarmHandle,
};
use tokio::time::timeout;

use crate::lock::lock;
use crate::machine::budget::Budget;

/// Longest search for a server, its connection and its greeting. Then the client lets the rows travel through itself.
const CONNECT_PATIENCE: Duration = Duration::from_secs(4);
/// A server that could not be reached is not tried again before this has passed, and the directory is not asked again
/// for the same block.
const PAUSE: Duration = Duration::from_secs(5);
/// What the directory said of a block is believed for this long.
const MAX_AGE: Duration = Duration::from_secs(60);
/// Hand-overs under way to one server, of all who ask for them; further ones wait for their turn. No more than may wait there for requests that never come.
const MOST_UNDER_WAY: u64 = 64;
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
    /// Hand-overs under way, by who asked for them.
    places: Budget,
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
    /// By block; only those within and next to the span that is served here are ever asked for. Each is locked while the directory is asked for it, so that
    /// it is asked once.
    found: Mutex<HashMap<u32, Arc<tokio::sync::Mutex<Option<Found>>>>>,
}

impl RelayLinks {
    pub(crate) fn new(swarm: SwarmHandle, model: ModelId) -> Self {
        Self { swarm, model, links: Mutex::default(), found: Mutex::default() }
    }

    /// Sends rows that `asker` wants to go on, and waits until the request on the other side has them; returns their number of bytes.
    pub(crate) async fn pass_on(
        &self,
        asker: Party,
        next: &Next,
        tensors: Vec<Tensor>,
        patience: Duration,
    ) -> Result<u64, RelayError> {
        let started = Instant::now();
        let (link, places) = timeout(CONNECT_PATIENCE, self.link(next)).await.map_err(|_| RelayError::TooSlow)??;
        let bytes = tensors.iter().map(|tensor| tensor.bytes().len() as u64).sum();
        if bytes > link.max_body {
            return Err(RelayError::TooLarge { got: bytes, limit: link.max_body });
        }
        let place = timeout(patience, places.of(asker).reserve(1)).await;
        let _place = place.map_err(|_| RequestError::Timeout(patience))?.ok_or(RequestError::Lost)?;
        let patience = patience.saturating_sub(started.elapsed());
        match link.stream.request(Request::Relay { token: next.token }, tensors, 0, patience).await?.0 {
            Response::Relayed => Ok(bytes),
            Response::Refused(refusal) => Err(RelayError::Refused(refusal)),
            _ => Err(RelayError::Answer),
        }
    }

    /// The stream to the next server, opened if there is none, and the places on it.
    async fn link(&self, next: &Next) -> Result<(Arc<Link>, Budget), RelayError> {
        let peer = next.peer;
        let (slot, places) = match self.used(peer) {
            Some(slot) => slot,
            // Only who is announced gets a place in the table.
            None => {
                self.server(next).await?;
                self.insert(peer)
            }
        };
        let mut slot = slot.lock().await;
        if let Some(link) = slot.link.as_ref().filter(|link| link.stream.is_open() && !link.path.is_outdated()) {
            return Ok((link.clone(), places));
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
                self.found(next.block).lock().await.take();
                return Err(error);
            }
        };
        *slot = Slot { link: Some(link.clone()), failed: None };
        Ok((link, places))
    }

    async fn open(&self, server: &DirectoryEntry) -> Result<Link, RelayError> {
        let stream = self.swarm.open_stream(server.peer, &server.addresses, CONNECT_PATIENCE).await?;
        let path = stream.path();
        let stream = RequestStream::new(stream);
        let hello = Request::Hello { model: self.model.clone() };
        match stream.request(hello, Vec::new(), 0, CONNECT_PATIENCE).await?.0 {
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
        let found = self.found(block);
        let mut found = found.lock().await;
        let is_peer = |server: &&DirectoryEntry| server.peer == peer;
        if let Some(known) = found.as_ref() {
            let server = known.servers.iter().find(is_peer).cloned();
            match server {
                Some(server) if known.at.elapsed() < MAX_AGE => return Ok(server),
                None if known.at.elapsed() < PAUSE => return Err(unknown()),
                _ => {}
            }
        }
        let looked_up = self.swarm.lookup(&self.model, span).await;
        let servers = looked_up.as_ref().map(Vec::clone).unwrap_or_default();
        *found = Some(Found { at: Instant::now(), servers });
        looked_up?.into_iter().find(|server| is_peer(&server)).ok_or_else(unknown)
    }

    /// What is known of a block. Nobody else's is locked.
    fn found(&self, block: u32) -> Arc<tokio::sync::Mutex<Option<Found>>> {
        lock(&self.found).entry(block).or_default().clone()
    }

    fn used(&self, peer: PeerId) -> Option<(Arc<tokio::sync::Mutex<Slot>>, Budget)> {
        let mut links = lock(&self.links);
        let used = links.get_mut(&peer)?;
        used.last = Instant::now();
        Some((used.slot.clone(), used.places.clone()))
    }

    fn insert(&self, peer: PeerId) -> (Arc<tokio::sync::Mutex<Slot>>, Budget) {
        let mut links = lock(&self.links);
        if !links.contains_key(&peer) && links.len() >= MAX_LINKS {
            let oldest = links.iter().min_by_key(|(_, used)| used.last).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| links.remove(&oldest));
        }
        let new = || Used { slot: Arc::default(), places: Budget::new(MOST_UNDER_WAY), last: Instant::now() };
        let used = links.entry(peer).or_insert_with(new);
        (used.slot.clone(), used.places.clone())
    }
}
