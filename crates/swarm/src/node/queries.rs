//! Questions asked of the hash table, and who waits for the answers.

use std::collections::HashMap;

use libp2p::PeerId;
use libp2p::kad::{GetProvidersOk, GetRecordOk, PutRecordError, QueryId, QueryResult};
use tokio::sync::{mpsc, oneshot};

/// A query in progress. Dropping its channel ends it for whoever waits.
#[derive(Debug)]
pub(super) enum Query {
    Providers(mpsc::Sender<PeerId>),
    Record(mpsc::Sender<Vec<u8>>),
    /// The last words of a server.
    Withdrawal(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
pub(super) struct Queries {
    running: HashMap<QueryId, Query>,
}

impl Queries {
    pub(super) fn insert(&mut self, id: QueryId, query: Query) {
        self.running.insert(id, query);
    }

    /// Hands on what a query found. `last`: nothing more will come.
    pub(super) fn on_progress(&mut self, id: &QueryId, result: QueryResult, last: bool) {
        match (result, self.running.get(id)) {
            (
                QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })),
                Some(Query::Providers(sink)),
            ) => {
                for peer in providers {
                    // The receiver does nothing but collect. What a flood makes overflow is found next time.
                    let _ = sink.try_send(peer);
                }
            }
            (QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))), Some(Query::Record(sink))) => {
                let _ = sink.try_send(found.record.value);
            }
            // All 20 nodes are asked to keep a record, and a small swarm has fewer: some is enough.
            (QueryResult::PutRecord(Err(PutRecordError::QuorumFailed { success, .. })), _) => {
                tracing::trace!(nodes = success.len(), "published a record");
            }
            (QueryResult::PutRecord(Err(error)), _) => tracing::debug!(%error, "publishing a record failed"),
            _ => {}
        }
        if last && let Some(Query::Withdrawal(done)) = self.running.remove(id) {
            let _ = done.send(());
        }
    }

    /// Forgets the queries that nobody waits for any more, and returns them.
    pub(super) fn take_abandoned(&mut self) -> Vec<QueryId> {
        let abandoned = self.running.extract_if(|_, query| match query {
            Query::Providers(sink) => sink.is_closed(),
            Query::Record(sink) => sink.is_closed(),
            Query::Withdrawal(_) => false,
        });
        abandoned.map(|(id, _)| id).collect()
    }
}
