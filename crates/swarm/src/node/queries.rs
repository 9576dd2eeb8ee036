//! Questions asked of the hash table, and who waits for the answers.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::kad::{GetProvidersOk, GetRecordOk, PutRecordError, QueryId, QueryResult, QueryStats};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// A query to which some nodes have answered, but nobody any more for this long, does not wait for the others: they are dead
/// or behind a bad link, and Kademlia waits 10 s for each. 2 s: a new connection takes a few round trips.
const STALL: Duration = Duration::from_secs(2);

/// A query in progress. Dropping its channel ends it for whoever waits.
#[derive(Debug)]
pub(super) enum Query {
    Providers(mpsc::Sender<Option<PeerId>>),
    Record(mpsc::Sender<Option<Vec<u8>>>),
    /// What one server itself answers.
    OwnRecord(PeerId, mpsc::Sender<Option<Vec<u8>>>),
    /// What others than this node answer.
    Others(mpsc::Sender<Option<Vec<u8>>>),
    /// What this server says of itself, or its name on the list of a block.
    Announcement,
    /// The last words of a server.
    Withdrawal(oneshot::Sender<()>),
}

impl Query {
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Providers(sink) => sink.is_closed(),
            Self::Record(sink) | Self::OwnRecord(_, sink) | Self::Others(sink) => sink.is_closed(),
            Self::Announcement | Self::Withdrawal(_) => false,
        }
    }

    /// Everybody concerned was asked. Whoever has gone away does not care.
    fn end(self) {
        match self {
            Self::Providers(sink) => {
                let _ = sink.try_send(None);
            }
            Self::Record(sink) | Self::OwnRecord(_, sink) | Self::Others(sink) => {
                let _ = sink.try_send(None);
            }
            Self::Announcement => {}
            Self::Withdrawal(done) => {
                let _ = done.send(());
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queries {
    running: HashMap<QueryId, Running>,
}

#[derive(Debug)]
struct Running {
    query: Query,
    /// Requests that were answered or failed.
    settled: u32,
    since: Instant,
}

impl Queries {
    pub(super) fn insert(&mut self, id: QueryId, query: Query) {
        self.running.insert(id, Running { query, settled: 0, since: Instant::now() });
    }

    /// Hands on what a query found. `last`: nothing more will come. Returns whether anybody waits for more.
    pub(super) fn on_progress(&mut self, id: &QueryId, result: QueryResult, last: bool) -> bool {
        match (result, self.running.get(id).map(|running| &running.query)) {
            (
                QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })),
                Some(Query::Providers(sink)),
            ) => {
                for peer in providers {
                    // The receiver does nothing but collect. What a flood makes overflow is found next time.
                    let _ = sink.try_send(Some(peer));
                }
            }
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::Record(sink))) => {
                let _ = sink.try_send(Some(found.record.value));
            }
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::OwnRecord(server, sink)))
                if found.peer == Some(*server) =>
            {
                let _ = sink.try_send(Some(found.record.value));
            }
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::Others(sink)))
                if found.peer.is_some() =>
            {
                let _ = sink.try_send(Some(found.record.value));
            }
            // All nodes near the key are asked to keep a record, and a small swarm has fewer: some is enough.
            (QueryResult::PutRecord(Err(PutRecordError::QuorumFailed { success, .. })), _) => {
                tracing::trace!(nodes = success.len(), "published a record");
            }
            (QueryResult::PutRecord(Err(error)), _) => tracing::debug!(%error, "publishing a record failed"),
            _ => {}
        }
        if last && let Some(Running { query, .. }) = self.running.remove(id) {
            query.end();
        }
        self.running.get(id).is_none_or(|running| !running.query.is_abandoned())
    }

    /// Forgets the queries that nobody waits for any more and those that nobody answers any more, and returns them, to be ended:
    /// an announcement then goes to the nodes that have answered. `stats` says how a query is doing.
    pub(super) fn take_given_up(
        &mut self,
        now: Instant,
        stats: impl Fn(&QueryId) -> Option<QueryStats>,
    ) -> Vec<QueryId> {
        let given_up = self.running.extract_if(|id, running| {
            running.query.is_abandoned() || stats(id).is_some_and(|stats| running.is_stalled(&stats, now))
        });
        given_up.map(|(id, _)| id).collect()
    }
}

impl Running {
    fn is_stalled(&mut self, stats: &QueryStats, now: Instant) -> bool {
        let settled = stats.num_successes() + stats.num_failures();
        if settled != self.settled {
            (self.settled, self.since) = (settled, now);
        }
        !matches!(self.query, Query::Withdrawal(_)) && stats.num_successes() > 0 && now >= self.since + STALL
    }
}
