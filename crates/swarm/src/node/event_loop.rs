//! The task that owns the network: what it is asked to do, and when. `network.rs` has what happens to it.

mod company;
mod network;
mod probing;

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{self, ProviderRecord, QueryId, QueryResult, Quorum, Record};
use libp2p::swarm::{ConnectionId, Swarm};
use petals_protocol::{ServerInfo, ServerState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::announcer::{AnnounceError, Announcer};
use super::dialler::Dialler;
use super::handle::{Command, DirectoryQuery, Protocol};
use super::members::Members;
use super::publisher::Publisher;
use super::queries::{Queries, Query};
use super::reach::Reach;
use super::targets::SharedTargets;
use super::view::{DirectoryTraffic, View};
use crate::behaviour::Behaviour;
use crate::carried::Carried;
use crate::config::SwarmConfig;
use crate::identity::Identity;
use crate::keys::{MAX_BLOCKS, block_key, clock_key, models_key, server_key};
use crate::rates::Rates;
use crate::record::{SignedRecord, SignedRecordError, unix_ms};
use crate::streams::AllowList;

/// Time between looks at what nobody waits for or has expired.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// What one peer may ask to be kept at once, and per second afterwards: a server of the deepest model announces 1024 blocks and a
/// record, of which this node is to keep a part, each minute.
const KEEP_BURST: u32 = 4096;
const KEPT_PER_SECOND: u32 = 64;
/// Longest wait for connections to close in order.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Owns the network; see [`super::SwarmNode::start`].
pub(super) struct EventLoop {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) config: SwarmConfig,
    identity: Identity,
    /// Whose block streams are taken.
    allowed: AllowList,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
    shutdown: CancellationToken,
    queries: Queries,
    announcer: Announcer,
    dialler: Dialler,
    members: Members,
    reach: Reach,
    /// Whose traffic is carried.
    carried: Carried,
    /// Whom this node dials.
    targets: SharedTargets,
    /// How much others may ask this node to keep.
    keeping: Rates<PeerId>,
    publisher: Publisher,
    /// Messages of the hash table that came in.
    directory: DirectoryTraffic,
    /// The other end of each connection.
    remotes: HashMap<ConnectionId, Remote>,
    meetings: probing::Meetings,
    /// When this node started, by its own clock.
    pub(super) started_ms: u64,
    housekeeping: Instant,
}

/// The other end of a connection.
#[derive(Debug)]
struct Remote {
    peer: PeerId,
    address: Multiaddr,
    /// Whether this node made the connection, to that address.
    dialled: bool,
    /// When it last answered a ping; `None` if it does not speak that protocol.
    alive: Option<Instant>,
}

impl EventLoop {
    pub(super) fn new(
        (swarm, carried, targets): (Swarm<Behaviour>, Carried, SharedTargets),
        identity: Identity,
        config: SwarmConfig,
        allowed: AllowList,
        commands: mpsc::Receiver<Command>,
        view: watch::Sender<View>,
        shutdown: CancellationToken,
    ) -> Self {
        let mut dialler = Dialler::new(identity.peer_id(), &config.peers, config.redial_pause);
        let members = Members::load(config.members.clone(), identity.peer_id());
        dialler.remember(members.all(), Instant::now());
        targets.with(|targets| targets.remember(members.all().iter().flat_map(|member| &member.addresses)));
        view.send_modify(|view| {
            view.wanted = dialler.peers();
            view.remembered = members.all().len();
            view.searches = config.searches();
        });
        let mut reach = Reach::new(!config.probes(), config.auto_relay, &config.relay_via, Instant::now());
        if config.probes_announced() {
            reach.expect(&config.announce);
        }
        let mut event_loop = Self {
            swarm,
            carried,
            targets,
            identity,
            allowed,
            commands,
            view,
            shutdown,
            queries: Queries::default(),
            announcer: Announcer::new(config.announce_period),
            dialler,
            members,
            publisher: Publisher::default(),
            directory: DirectoryTraffic::default(),
            reach,
            keeping: Rates::new(KEEP_BURST, KEPT_PER_SECOND),
            remotes: HashMap::new(),
            meetings: probing::Meetings::default(),
            started_ms: unix_ms(),
            housekeeping: Instant::now() + HOUSEKEEPING,
            config,
        };
        event_loop.try_announced();
        event_loop.refresh_addresses();
        event_loop.refresh_reachability();
        event_loop
    }

    /// Runs until shutdown. Panics on nothing that comes from the network.
    pub(super) async fn run(mut self) {
        loop {
            self.do_what_is_due();
            let due = [self.dialler.next_due(), self.announcer.next_due()];
            let due = due.into_iter().flatten().fold(self.housekeeping, Instant::min);
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                () = tokio::time::sleep_until(due) => {}
            }
        }
        self.close().await;
    }

    /// Ends all connections, so that others notice at once.
    async fn close(mut self) {
        // From here on, whoever asks is told that the node is gone.
        self.commands.close();
        self.keep_members_now().await;
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_DEADLINE, closed).await;
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        for attempt in self.dialler.take_due(now) {
            let peer = attempt.get_peer_id();
            if let Err(error) = self.swarm.dial(attempt) {
                self.on_dial_error(peer, &error);
            }
        }
        let heard = self.swarm.behaviour_mut().kad.kbuckets().next().is_some();
        if let Some(info) = self.announcer.take_due(now, unix_ms(), heard)
            && let Err(error) = self.publish(&info, None)
        {
            tracing::warn!(%error, "this server cannot be announced");
        }
        if self.housekeeping <= now {
            self.housekeeping = now + HOUSEKEEPING;
            self.close_silent_connections(now);
            self.close_superfluous_connections();
            self.ask_relays(now);
            self.settle_meetings(now);
            self.keep_members(now);
            self.announce_to_newcomers();
            let directory = self.directory;
            self.view.send_if_modified(|view| {
                view.directory = directory;
                // Nobody waits for a change of this.
                false
            });
            let kad = &mut self.swarm.behaviour_mut().kad;
            kad.store_mut().expire();
            let stats = |id: &QueryId| kad.query(id).map(|query| *query.stats());
            for id in self.queries.take_given_up(now, stats) {
                if let Some(mut query) = kad.query_mut(&id) {
                    query.finish();
                }
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Announce { info, reply } => {
                let _ = reply.send(self.announce(*info));
            }
            Command::Withdraw { done } => self.withdraw(done),
            Command::Allow { peers } => self.allow(peers),
            Command::Query(query) => self.query(query),
            Command::MeetSelf { address, reply } => self.meet_self(address, reply),
            Command::Open { protocol, peer, addresses, request } => {
                let behaviour = self.swarm.behaviour_mut();
                let streams = match protocol {
                    Protocol::Blocks => &mut behaviour.streams,
                    Protocol::Contents => &mut behaviour.contents,
                };
                streams.open(peer, addresses, request);
            }
        }
    }

    fn query(&mut self, query: DirectoryQuery) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let (id, query) = match query {
            DirectoryQuery::Providers { model, block, found } => {
                (kad.get_providers(block_key(&model, block)), Query::Providers(found))
            }
            DirectoryQuery::Record { model, peer, own, found } => {
                let query = if own { Query::OwnRecord(peer, found) } else { Query::Record(found) };
                (kad.get_record(server_key(&model, &peer)), query)
            }
            DirectoryQuery::Clock { found } => (kad.get_record(clock_key()), Query::Others(found)),
            DirectoryQuery::Models { found } => (kad.get_record(models_key()), Query::Others(found)),
        };
        self.queries.insert(id, query);
    }

    fn announce(&mut self, info: ServerInfo) -> Result<(), AnnounceError> {
        if info.span.end() > MAX_BLOCKS {
            return Err(AnnounceError::Span(info.span.end()));
        }
        self.seal(&info)?;
        if let Some(old) = self.announcer.set(info.clone(), Instant::now()) {
            let gone = old.span.blocks().filter(|block| old.model != info.model || !info.span.contains(*block));
            for block in gone {
                self.swarm.behaviour_mut().kad.stop_providing(&block_key(&old.model, block));
            }
            if old.model != info.model {
                let written_ms = self.announcer.stamp(unix_ms());
                // Should this fail, the old record expires by itself.
                let _ = self.publish(&ServerInfo { state: ServerState::Offline, written_ms, ..old }, None);
            }
        }
        Ok(())
    }

    fn withdraw(&mut self, done: oneshot::Sender<()>) {
        // Dropping `done` tells the caller that there is nothing to wait for.
        let Some(last) = self.announcer.withdraw(unix_ms()) else { return };
        self.publisher.set_waiting(std::iter::empty());
        for block in last.span.blocks() {
            self.swarm.behaviour_mut().kad.stop_providing(&block_key(&last.model, block));
        }
        if let Err(error) = self.publish(&last, Some(done)) {
            tracing::debug!(%error, "could not say goodbye");
        }
    }

    fn seal(&self, info: &ServerInfo) -> Result<Vec<u8>, AnnounceError> {
        let addresses = self.external();
        let (relayed, started_ms) = (self.reach.is_relayed(), Some(self.started_ms));
        let info = ServerInfo { relayed, started_ms, ..info.clone() };
        SignedRecord::seal(&self.identity, &info, &addresses, self.config.record_ttl()).map_err(|error| match error {
            SignedRecordError::TooLong(_) => AnnounceError::TooLong,
            other => AnnounceError::Record(other.to_string()),
        })
    }

    /// Sends what this server says of itself to the nodes that keep it; then, unless it is leaving, its name to those that
    /// keep its blocks' lists.
    fn publish(&mut self, info: &ServerInfo, done: Option<oneshot::Sender<()>>) -> Result<(), AnnounceError> {
        let value = self.seal(info)?;
        let refused = |error: kad::store::Error| AnnounceError::Record(error.to_string());
        let key = server_key(&info.model, &self.identity.peer_id());
        let kad = &mut self.swarm.behaviour_mut().kad;
        let id = kad.put_record(Record::new(key.clone(), value), Quorum::All).map_err(refused)?;
        self.publisher.on_started(id, key);
        self.queries.insert(id, done.map_or(Query::Announcement, Query::Withdrawal));
        let known = self.known_nodes();
        if info.state != ServerState::Offline && self.publisher.take_due(info, known, Instant::now()) {
            let keys = || info.span.blocks().map(|block| block_key(&info.model, block));
            // Whoever asks this node itself is answered at once.
            let (local, store) = (self.identity.peer_id(), self.swarm.behaviour_mut().kad.store_mut());
            for key in keys() {
                store.add_provider(ProviderRecord::new(key, local, Vec::new())).map_err(refused)?;
            }
            self.publisher.set_waiting(keys());
            self.write_entries();
        }
        tracing::debug!(model = %info.model, span = %info.span, state = ?info.state, "announced");
        Ok(())
    }

    /// Puts this server's name under the next keys of its blocks.
    fn write_entries(&mut self) {
        while let Some(key) = self.publisher.next() {
            match self.swarm.behaviour_mut().kad.start_providing(key.clone()) {
                Ok(id) => {
                    self.publisher.on_started(id, key);
                    self.queries.insert(id, Query::Announcement);
                }
                Err(error) => tracing::warn!(%error, "this server cannot be put on the list of one of its blocks"),
            }
        }
    }

    /// Announces anew if the swarm has grown so much that those who look for this server may ask others than those who
    /// know it.
    fn announce_to_newcomers(&mut self) {
        let (known, now) = (self.known_nodes(), Instant::now());
        if self.publisher.has_outgrown(known, now) {
            self.publisher.forget();
            self.announcer.hurry(now);
        }
    }

    /// Nodes in the routing table.
    fn known_nodes(&mut self) -> usize {
        self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    fn on_query_progress(&mut self, id: QueryId, result: QueryResult, last: bool) {
        let wanted = self.queries.on_progress(&id, result, last);
        if last {
            self.publisher.on_ended(&id);
            self.write_entries();
        } else if !wanted && let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id) {
            query.finish();
        }
    }
}
