//! The node as the rest of a program sees it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use petals_protocol::{ModelId, ServerInfo, WireVersion};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announcer::AnnounceError;
use super::reach::Reachability;
use super::view::{DirectoryTraffic, View};
use crate::streams::{Admission, Incoming, OpenError, OpenFailure, OpenRequest, PeerStream, Traffic};

/// Attempts of one [`SwarmHandle::open_stream`]: a connection may close just when a stream is opened on it.
const OPEN_ATTEMPTS: usize = 3;
/// Before the second one, and twice as long before the third: a connection that ends takes no more requests some time before that is told.
const LOST_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for a connected peer to say what it speaks.
const FIRST_WORDS: Duration = Duration::from_secs(2);
/// Longest wait for others to take note that this server is leaving.
const WITHDRAW_DEADLINE: Duration = Duration::from_secs(2);

/// A handle on a running node. Clones are cheap and lead to the same node.
#[derive(Debug, Clone)]
pub struct SwarmHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    local: PeerId,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    admission: Arc<Admission>,
    contents: Mutex<Option<Incoming>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    lookup_timeout: Duration,
    started_ms: u64,
}

/// What handles ask of the event loop.
#[derive(Debug)]
pub(crate) enum Command {
    Announce { info: Box<ServerInfo>, reply: oneshot::Sender<Result<(), AnnounceError>> },
    Withdraw { done: oneshot::Sender<()> },
    Allow { peers: Option<HashSet<PeerId>> },
    Query(DirectoryQuery),
    MeetSelf { address: Multiaddr, reply: oneshot::Sender<bool> },
    Open { protocol: Protocol, peer: PeerId, addresses: Vec<Multiaddr>, request: OpenRequest },
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Blocks,
    Contents,
}

/// A question to the hash table. Answers come through the channel, and `None` when everybody who should know has been asked;
/// if the channel closes before that, some did not answer. Dropping the receiver ends the query.
#[derive(Debug)]
pub(crate) enum DirectoryQuery {
    Providers {
        model: ModelId,
        block: u32,
        found: mpsc::Sender<Option<PeerId>>,
    },
    /// With `own`, only what the server itself answers.
    Record {
        model: ModelId,
        peer: PeerId,
        own: bool,
        found: mpsc::Sender<Option<Vec<u8>>>,
    },
    /// The time that others have.
    Clock {
        found: mpsc::Sender<Option<Vec<u8>>>,
    },
    /// The models that others have records of.
    Models {
        found: mpsc::Sender<Option<Vec<u8>>>,
    },
}

/// Why the node is not part of a swarm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No configured peer answered.
    #[error("none of the given peers could be reached within {after:?}: {}", failures.join("; "))]
    Unreachable {
        /// The time allowed.
        after: Duration,
        /// What happened at each address.
        failures: Vec<String>,
    },
    /// No peers are configured, and nobody else was found.
    #[error("no member of the swarm was found within {after:?}: {}", looked.join("; "))]
    Alone {
        /// The time allowed.
        after: Duration,
        /// Where they were looked for.
        looked: Vec<String>,
    },
    /// This node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

impl SwarmHandle {
    pub(super) fn new(
        local: PeerId,
        commands: mpsc::Sender<Command>,
        view: watch::Receiver<View>,
        (admission, contents): (Arc<Admission>, Option<Incoming>),
        shutdown: CancellationToken,
        tasks: TaskTracker,
        (lookup_timeout, started_ms): (Duration, u64),
    ) -> Self {
        let contents = Mutex::new(contents);
        let inner = Inner { local, commands, view, admission, contents, shutdown, tasks, lookup_timeout, started_ms };
        Self { inner: Arc::new(inner) }
    }

    /// This node's id.
    pub fn local_peer(&self) -> PeerId {
        self.inner.local
    }

    /// The addresses this node listens on, each ending in `/p2p/` and its id.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.inner.view.borrow().listen.clone()
    }

    /// The addresses this node tells others, each ending in `/p2p/` and its id: what to hand to `--peers`.
    pub fn external_addresses(&self) -> Vec<Multiaddr> {
        self.inner.view.borrow().external.clone()
    }

    /// Whether others reach this node directly, as far as it knows.
    pub fn reachability(&self) -> Reachability {
        self.inner.view.borrow().reachability
    }

    /// The announced addresses, and whether a peer that tried reached this node there; `None` if nobody has tried yet.
    pub fn announced(&self) -> Vec<(Multiaddr, Option<bool>)> {
        self.inner.view.borrow().announced.clone()
    }

    /// Asks whether another node answers at `address` under this node's identity: `true` only if one does.
    pub(crate) async fn meets_namesake(&self, address: Multiaddr, timeout: Duration) -> bool {
        let (reply, answer) = oneshot::channel();
        if self.inner.commands.send(Command::MeetSelf { address, reply }).await.is_err() {
            return false;
        }
        matches!(tokio::time::timeout(timeout, answer).await, Ok(Ok(true)))
    }

    /// The peers connected now.
    pub fn connected_peers(&self) -> Vec<PeerId> {
        self.inner.view.borrow().peers.keys().copied().collect()
    }

    /// Whether there is a connection to `peer` now.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.inner.view.borrow().peers.contains_key(peer)
    }

    /// The last round trip to `peer`, if it is connected and has answered a ping.
    pub fn ping(&self, peer: &PeerId) -> Option<Duration> {
        self.inner.view.borrow().peers.get(peer).copied().flatten()
    }

    /// Requests of the hash table that this node received, as of a second ago.
    pub fn directory_traffic(&self) -> DirectoryTraffic {
        self.inner.view.borrow().directory
    }

    /// What has passed through block streams since the start.
    pub fn traffic(&self) -> Traffic {
        self.inner.admission.traffic()
    }

    /// Waits until one of the configured peers is connected; returns at once if none is configured. The node goes on
    /// trying whatever this returns.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] says what happened at each address.
    pub async fn wait_connected(&self, timeout: Duration) -> Result<(), ConnectError> {
        let mut view = self.inner.view.clone();
        match tokio::time::timeout(timeout, view.wait_for(View::has_joined)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ConnectError::Closed),
            Err(_) => Err(ConnectError::Unreachable { after: timeout, failures: self.failures() }),
        }
    }

    /// Waits until any member of the swarm is there: a configured peer, one of the local network, or one met before this start. The node
    /// goes on looking whatever this returns.
    ///
    /// # Errors
    /// [`ConnectError`] says where members were looked for, and what came of it.
    pub async fn wait_company(&self, timeout: Duration) -> Result<(), ConnectError> {
        let mut view = self.inner.view.clone();
        match tokio::time::timeout(timeout, view.wait_for(View::has_company)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ConnectError::Closed),
            Err(_) => Err(self.why_alone(timeout)),
        }
    }

    /// Whether a configured peer or any other member is there.
    pub fn has_company(&self) -> bool {
        self.inner.view.borrow().has_company()
    }

    /// Members that were met before this start and are tried again.
    pub fn remembered(&self) -> usize {
        self.inner.view.borrow().remembered
    }

    /// Where members were looked for in the time given, and what came of it.
    pub fn why_alone(&self, after: Duration) -> ConnectError {
        let (configured, remembered, searches) = {
            let view = self.inner.view.borrow();
            (!view.wanted.is_empty(), view.remembered, view.searches)
        };
        let before = match remembered {
            0 => None,
            1 => Some("the one member met before does not answer".to_owned()),
            many => Some(format!("none of the {many} members met before answers")),
        };
        if configured {
            return ConnectError::Unreachable { after, failures: self.failures().into_iter().chain(before).collect() };
        }
        let local = if searches { "nobody on the local network" } else { "the local network was not searched" };
        let before = before.unwrap_or_else(|| "no member was met before".to_owned());
        ConnectError::Alone { after, looked: vec!["no peers are given".to_owned(), local.to_owned(), before] }
    }

    fn failures(&self) -> Vec<String> {
        let view = self.inner.view.borrow();
        let describe = |peer: &PeerId| match view.failures.get(peer) {
            Some(failure) => failure.clone(),
            None => format!("no answer from {peer} yet"),
        };
        view.wanted.iter().map(describe).collect()
    }

    /// Announces what this server is, now and every period, until [`Self::withdraw`]. Call it again whenever something
    /// changes: another state or span is published at once, other changes within a second. `written_ms` is filled in.
    ///
    /// Returns when the announcement is kept here. It is sent to others as soon as there are any.
    ///
    /// # Errors
    /// [`AnnounceError`] if others would refuse the record.
    pub async fn announce(&self, info: ServerInfo) -> Result<(), AnnounceError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Announce { info: Box::new(info), reply };
        self.inner.commands.send(command).await.map_err(|_| AnnounceError::Closed)?;
        answer.await.map_err(|_| AnnounceError::Closed)?
    }

    /// Stops announcing and tells others that this server is gone. Waits a little until they took note.
    pub async fn withdraw(&self) {
        let (done, told) = oneshot::channel();
        if self.inner.commands.send(Command::Withdraw { done }).await.is_err() {
            return;
        }
        if tokio::time::timeout(WITHDRAW_DEADLINE, told).await.is_err() {
            tracing::debug!("left before others took note; they forget this server when its record expires");
        }
    }

    /// Takes block streams of these peers alone from now on, or of all. Connections to those that may not use this node any more are closed, with
    /// the streams on them.
    pub async fn allow(&self, peers: Option<HashSet<PeerId>>) {
        // Without an event loop there is nobody to be kept out.
        let _ = self.inner.commands.send(Command::Allow { peers }).await;
    }

    /// Opens a stream to `peer`, over a new connection to one of `addresses` (or one known from the hash table) if
    /// there is none. A peer that refuses the stream closes it: the first read then ends.
    ///
    /// # Errors
    /// [`OpenError`]; nothing here waits longer than `timeout`.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        addresses: &[Multiaddr],
        timeout: Duration,
    ) -> Result<PeerStream, OpenError> {
        self.open(Protocol::Blocks, peer, addresses, timeout).await
    }

    /// Opens a stream on which `peer` passes on files of its model, as [`Self::open_stream`] does for blocks.
    ///
    /// # Errors
    /// As there; [`OpenError::Unsupported`] if it passes on none.
    pub async fn open_content_stream(
        &self,
        peer: PeerId,
        addresses: &[Multiaddr],
        timeout: Duration,
    ) -> Result<PeerStream, OpenError> {
        self.open(Protocol::Contents, peer, addresses, timeout).await
    }

    /// The streams on which others ask this node for files of its model, if [`crate::SwarmConfig::shares_contents`]. Once; `None` after that.
    pub fn take_content_streams(&self) -> Option<Incoming> {
        // Taken in one step, so a panic elsewhere leaves it whole.
        self.inner.contents.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn open(
        &self,
        protocol: Protocol,
        peer: PeerId,
        addresses: &[Multiaddr],
        timeout: Duration,
    ) -> Result<PeerStream, OpenError> {
        let attempts = async {
            for attempt in 1..OPEN_ATTEMPTS as u32 {
                match self.open_once(protocol, peer, addresses).await {
                    Err(OpenError::ConnectionLost(_)) => tokio::time::sleep(LOST_PAUSE * attempt).await,
                    result => return result,
                }
            }
            self.open_once(protocol, peer, addresses).await
        };
        tokio::time::timeout(timeout, attempts).await.unwrap_or(Err(OpenError::Timeout { peer, after: timeout }))
    }

    async fn open_once(
        &self,
        protocol: Protocol,
        peer: PeerId,
        addresses: &[Multiaddr],
    ) -> Result<PeerStream, OpenError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Open { protocol, peer, addresses: addresses.to_vec(), request: OpenRequest { reply } };
        self.inner.commands.send(command).await.map_err(|_| OpenError::Closed)?;
        match answer.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(OpenFailure::Unreachable(reason))) => Err(OpenError::Unreachable { peer, reason }),
            Ok(Err(OpenFailure::Unsupported(ours))) if ours.is_empty() => Err(OpenError::Unsupported(peer)),
            Ok(Err(OpenFailure::Unsupported(ours))) => Err(self.no_version(peer, &ours).await),
            Ok(Err(OpenFailure::NotAllowed)) => Err(OpenError::NotAllowed { peer, local: Box::new(self.inner.local) }),
            Ok(Err(OpenFailure::Io(source))) => Err(OpenError::Io { peer, source }),
            Err(_) if self.inner.commands.is_closed() => Err(OpenError::Closed),
            Err(_) => Err(OpenError::ConnectionLost(peer)),
        }
    }

    /// The versions of block streams that each connected peer accepts, as far as it has said so; none if it serves no blocks.
    pub fn wire_versions_of_peers(&self) -> Vec<(PeerId, Vec<WireVersion>)> {
        self.inner.view.borrow().wire.iter().map(|(peer, versions)| (*peer, versions.clone())).collect()
    }

    /// Why a peer accepts none of the versions that this node speaks.
    async fn no_version(&self, peer: PeerId, ours: &[WireVersion]) -> OpenError {
        let mut view = self.inner.view.clone();
        let told = tokio::time::timeout(FIRST_WORDS, view.wait_for(|view| view.wire.contains_key(&peer))).await;
        let theirs = told.ok().and_then(Result::ok).and_then(|view| view.wire.get(&peer).cloned());
        OpenError::no_version(peer, &theirs.unwrap_or_default(), ours)
    }

    /// When this node started, by its own clock, in Unix milliseconds.
    pub(crate) fn started_ms(&self) -> u64 {
        self.inner.started_ms
    }

    /// How long a lookup may take.
    pub(crate) fn lookup_timeout(&self) -> Duration {
        self.inner.lookup_timeout
    }

    /// Asks the hash table. `false` if the node is shutting down.
    pub(crate) async fn query(&self, query: DirectoryQuery) -> bool {
        self.inner.commands.send(Command::Query(query)).await.is_ok()
    }

    /// Whether there is nobody to ask, though there should be.
    pub(crate) fn is_alone_unwillingly(&self) -> bool {
        let view = self.inner.view.borrow();
        view.peers.is_empty() && (!view.wanted.is_empty() || view.remembered > 0)
    }

    /// Closes all connections and ends the node; returns when it has ended. Streams end with an error. Servers call
    /// [`Self::withdraw`] first.
    pub async fn shutdown(&self) {
        self.inner.shutdown.cancel();
        self.inner.tasks.wait().await;
    }
}
