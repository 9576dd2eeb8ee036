//! Looking up who serves a model.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use libp2p::{Multiaddr, PeerId};
use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::clock::{ClockOffset, WrongClock};
use crate::keys::MAX_BLOCKS;
use crate::node::{DirectoryQuery, SwarmHandle};
use crate::record::{SignedRecord, unix_ms};

/// Queries in progress at a time. Each asks three nodes at a time.
const PARALLEL: usize = 32;
/// Answers waiting to be looked at.
const ANSWERS: usize = 256;
/// Servers of one model that are looked at, and names of one block. Keeps a flood of made-up provider entries from costing more than this.
const MAX_SERVERS: usize = 1024;
/// Once some node has answered, how long the others are waited for. A query ends by itself when all nodes near the key
/// have answered, which on a healthy network is sooner; this is for nodes that have just died. 1 s: the first answer may
/// come from this node itself, and the others need a connection first.
const SETTLE: Duration = Duration::from_secs(1);

/// Nodes that are asked what a server says of itself. Whoever keeps its record has checked the signature, and the latest
/// counts: one that missed the last announcement does not matter, and three that did say what was true two minutes ago.
const WITNESSES: usize = 3;

/// A server found.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectoryEntry {
    /// Its id.
    pub peer: PeerId,
    /// What it says of itself, under its signature.
    pub info: ServerInfo,
    /// Where it says it is, under its signature.
    pub addresses: Vec<Multiaddr>,
}

/// Who claims to hold which of some blocks. Names alone: anybody may put them there.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Of each block.
    pub of_block: BTreeMap<u32, HashSet<PeerId>>,
    /// Whether every query came to its end.
    pub complete: bool,
}

/// Why a lookup found nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// There is nobody to ask.
    #[error("not connected to any member of the swarm")]
    NotConnected,
    /// Members that may know did not answer.
    #[error("members of the swarm that may know did not answer, in {0:?} at most")]
    TimedOut(Duration),
    /// No known model has so many blocks.
    #[error("blocks beyond {MAX_BLOCKS} cannot be looked up, and {0} is the end of the span")]
    Span(u32),
    /// This node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

impl SwarmHandle {
    /// Finds the servers of any of `blocks`. An empty list is an answer: nobody serves them. What cannot be found within
    /// the configured time is missing from the result.
    ///
    /// # Errors
    /// [`LookupError`] if nothing was found and the reason is not that there is nothing.
    pub async fn lookup(&self, model: &ModelId, blocks: Span) -> Result<Vec<DirectoryEntry>, LookupError> {
        lookup(self, model, blocks, self.lookup_timeout()).await
    }

    /// Who claims to hold any of `blocks`: the first half of [`Self::lookup`], which asks for every block.
    ///
    /// # Errors
    /// [`LookupError::Closed`], and [`LookupError::Span`].
    pub async fn list(&self, model: &ModelId, blocks: Span) -> Result<Listed, LookupError> {
        if blocks.end() > MAX_BLOCKS {
            return Err(LookupError::Span(blocks.end()));
        }
        find_servers(self, model, blocks, Instant::now() + self.lookup_timeout() / 2).await
    }

    /// What each of `peers` says of itself, as far as it serves any of `blocks`, and whether every query came to its end: the other half of
    /// [`Self::lookup`], which asks for every server, within half of its time.
    ///
    /// # Errors
    /// [`LookupError::Closed`].
    pub async fn describe(
        &self,
        model: &ModelId,
        blocks: Span,
        peers: HashSet<PeerId>,
    ) -> Result<(Vec<DirectoryEntry>, bool), LookupError> {
        describe_servers(self, model, blocks, peers, Instant::now() + self.lookup_timeout() / 2).await
    }

    /// Why nothing was found, if the reason is not that there is nothing.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn found_nothing(&self, complete: bool) -> Result<(), LookupError> {
        match complete {
            _ if self.is_alone_unwillingly() => Err(LookupError::NotConnected),
            false => Err(LookupError::TimedOut(self.lookup_timeout())),
            true => Ok(()),
        }
    }

    /// Servers of `blocks` whose records are refused because one of the clocks is wrong: those that say themselves, now, what is not of
    /// this time.
    ///
    /// # Errors
    /// [`LookupError::Closed`], and [`LookupError::Span`].
    pub async fn wrong_clocks(&self, model: &ModelId, blocks: Span) -> Result<Vec<WrongClock>, LookupError> {
        wrong_clocks(self, model, blocks, self.lookup_timeout()).await
    }
}

/// Finds the servers of any of `blocks`: first who they are, block by block, then what each of them says.
async fn lookup(
    swarm: &SwarmHandle,
    model: &ModelId,
    blocks: Span,
    within: Duration,
) -> Result<Vec<DirectoryEntry>, LookupError> {
    if blocks.end() > MAX_BLOCKS {
        return Err(LookupError::Span(blocks.end()));
    }
    let start = Instant::now();
    // Names without records are worth nothing, so the first step leaves time for the second.
    let listed = find_servers(swarm, model, blocks, start + within / 2).await?;
    let (peers, all_answered) = (listed.peers(), listed.complete);
    let (entries, all_described) = describe_servers(swarm, model, blocks, peers, start + within).await?;
    let complete = all_answered && all_described;
    if entries.is_empty() {
        swarm.found_nothing(complete)?;
    }
    tracing::debug!(%model, %blocks, servers = entries.len(), complete, took = ?start.elapsed(), "lookup");
    Ok(entries)
}

impl Listed {
    /// All of them, up to a bound.
    fn peers(&self) -> HashSet<PeerId> {
        let mut all = HashSet::new();
        for peers in self.of_block.values() {
            let room = MAX_SERVERS.saturating_sub(all.len());
            all.extend(peers.iter().take(room));
        }
        all
    }
}

/// Who claims to serve any of `blocks`.
async fn find_servers(
    swarm: &SwarmHandle,
    model: &ModelId,
    blocks: Span,
    deadline: Instant,
) -> Result<Listed, LookupError> {
    let of_block = |block| async move {
        let (found, answers) = mpsc::channel(ANSWERS);
        let query = DirectoryQuery::Providers { model: model.clone(), block, found };
        if !swarm.query(query).await {
            return Err(LookupError::Closed);
        }
        let mut peers = HashSet::new();
        let complete = collect(answers, deadline, usize::MAX, |peer| {
            if peers.len() < MAX_SERVERS {
                peers.insert(peer);
            }
            true
        });
        let complete = complete.await;
        Ok((block, peers, complete))
    };
    let mut results = stream::iter(blocks.blocks()).map(of_block).buffer_unordered(PARALLEL);
    let mut listed = Listed { complete: true, ..Listed::default() };
    while let Some(result) = results.next().await {
        let (block, peers, finished) = result?;
        listed.complete &= finished;
        listed.of_block.insert(block, peers);
    }
    Ok(listed)
}

/// What each of `peers` says of itself, as far as it serves any of `blocks`.
async fn describe_servers(
    swarm: &SwarmHandle,
    model: &ModelId,
    blocks: Span,
    peers: HashSet<PeerId>,
    deadline: Instant,
) -> Result<(Vec<DirectoryEntry>, bool), LookupError> {
    let of_peer = |peer| async move {
        let (found, answers) = mpsc::channel(ANSWERS);
        if !swarm.query(DirectoryQuery::Record { model: model.clone(), peer, own: false, found }).await {
            return Err(LookupError::Closed);
        }
        let mut latest: Option<SignedRecord> = None;
        let complete =
            collect(answers, deadline, WITNESSES, |bytes: Vec<u8>| match SignedRecord::open(&bytes, unix_ms()) {
                Ok(record) if record.peer == peer && record.info.model == *model => {
                    if latest.as_ref().is_none_or(|known| known.info.written_ms < record.info.written_ms) {
                        latest = Some(record);
                    }
                    true
                }
                _ => false,
            });
        let complete = complete.await;
        Ok((latest, complete))
    };
    let mut results = stream::iter(peers).map(of_peer).buffer_unordered(PARALLEL);
    let (mut entries, mut complete) = (Vec::new(), true);
    while let Some(result) = results.next().await {
        let (record, finished) = result?;
        complete &= finished;
        let serving = |record: &SignedRecord| {
            record.info.state != ServerState::Offline && record.info.span.intersect(blocks).is_some()
        };
        entries.extend(record.filter(serving).map(|SignedRecord { peer, info, addresses, .. }| DirectoryEntry {
            peer,
            info,
            addresses,
        }));
    }
    Ok((entries, complete))
}

/// Servers of any of `blocks` whose own record, as they have it now, is not of this time.
async fn wrong_clocks(
    swarm: &SwarmHandle,
    model: &ModelId,
    blocks: Span,
    within: Duration,
) -> Result<Vec<WrongClock>, LookupError> {
    if blocks.end() > MAX_BLOCKS {
        return Err(LookupError::Span(blocks.end()));
    }
    let start = Instant::now();
    let peers = find_servers(swarm, model, blocks, start + within / 2).await?.peers();
    let of_peer = |peer| async move {
        let (found, answers) = mpsc::channel(ANSWERS);
        if !swarm.query(DirectoryQuery::Record { model: model.clone(), peer, own: true, found }).await {
            return Err(LookupError::Closed);
        }
        let mut wrong = None;
        let first = collect(answers, start + within, 1, |bytes: Vec<u8>| {
            wrong = SignedRecord::clock_offset(&bytes, &peer, unix_ms());
            true
        });
        first.await;
        Ok(wrong.map(|ahead_ms| WrongClock { peer, offset: ClockOffset { ahead_ms, witnesses: 1 } }))
    };
    let mut results = stream::iter(peers).map(of_peer).buffer_unordered(PARALLEL);
    let mut wrong = Vec::new();
    while let Some(result) = results.next().await {
        wrong.extend(result?);
    }
    Ok(wrong)
}

/// What the hash table knows of this node's own identity, if another node wrote it.
pub(crate) async fn namesake(swarm: &SwarmHandle, model: &ModelId) -> Option<SignedRecord> {
    let (found, answers) = mpsc::channel(ANSWERS);
    let local = swarm.local_peer();
    if !swarm.query(DirectoryQuery::Record { model: model.clone(), peer: local, own: false, found }).await {
        return None;
    }
    let mut latest: Option<SignedRecord> = None;
    let deadline = Instant::now() + swarm.lookup_timeout();
    let all = collect(answers, deadline, WITNESSES, |bytes: Vec<u8>| {
        let record = SignedRecord::open(&bytes, unix_ms()).ok().filter(|record| record.peer == local);
        let other = record.filter(|record| {
            record.info.state != ServerState::Offline && record.info.started_ms != Some(swarm.started_ms())
        });
        let known = latest.as_ref().map_or(0, |known| known.info.written_ms);
        if let Some(other) = other.filter(|other| other.info.written_ms >= known) {
            latest = Some(other);
        }
        true
    });
    all.await;
    latest
}

/// Takes answers until there are no more, `enough` were useful, or [`SETTLE`] has passed since the first useful one (`true`);
/// or until the deadline passes or nobody answers any more (`false`).
async fn collect<T>(
    mut answers: mpsc::Receiver<Option<T>>,
    deadline: Instant,
    enough: usize,
    mut take: impl FnMut(T) -> bool,
) -> bool {
    let (mut until, mut useful) = (deadline, 0);
    loop {
        match timeout_at(until, answers.recv()).await {
            Ok(Some(Some(answer))) => {
                if take(answer) {
                    until = until.min(Instant::now() + SETTLE);
                    useful += 1;
                    if useful >= enough {
                        return true;
                    }
                }
            }
            Ok(Some(None)) => return true,
            Ok(None) => return useful > 0,
            Err(_) => return until < deadline,
        }
    }
}
