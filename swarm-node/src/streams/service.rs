//! What all streams of a node share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use petals_protocol::{FrameLimits, Limits, Refusal};

use super::relay::{RelayLinks, Rendezvous};
use crate::executor::ExecutorHandle;
use crate::machine::budget::{Budget, NoRoom, PartyBudget, Reserved};
use crate::machine::speed::Speed;
use crate::placement::hosted::Hosted;

/// Unanswered requests of one stream; then reading pauses, which is backpressure to the client.
pub(super) const MAX_IN_FLIGHT: u32 = 32;
/// When to ask again if there is no memory for a reply.
pub(super) const RETRY_WITHOUT_MEMORY_MS: u32 = 100;
/// This part of the memory for requests is for tables that streams keep.
const TABLES_PART: u64 = 8;

/// What requests may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Rows of a pass.
    pub(crate) rows: u32,
    /// Bytes of requests and replies in memory.
    pub(crate) memory: u64,
    /// Bytes of the tables of a request; `None` for as much as fits into one.
    pub(crate) adapter: Option<u64>,
}

/// What all streams of a node share.
#[derive(Debug)]
pub(crate) struct StreamService {
    pub(crate) hosted: Arc<Hosted>,
    pub(crate) executor: ExecutorHandle,
    pub(crate) speed: Arc<Speed>,
    /// Where rows from other servers meet the requests that wait for them.
    pub(crate) rendezvous: Arc<Rendezvous>,
    /// To the servers that rows are passed on to.
    pub(crate) links: Option<RelayLinks>,
    /// Bytes of requests and replies that may be in memory.
    pub(super) memory: Budget,
    /// Bytes of tables that streams may keep. Apart from the requests' memory, which they would hold for as long as they like.
    pub(super) tables: Budget,
    pub(super) limits: Limits,
    pub(super) next_stream: AtomicU64,
}

impl StreamService {
    /// Without `links` nothing is passed on to other servers.
    pub(crate) fn new(
        hosted: Arc<Hosted>,
        executor: ExecutorHandle,
        speed: Arc<Speed>,
        links: Option<RelayLinks>,
        Bounds { rows: max_rows, memory: memory_bytes, adapter }: Bounds,
    ) -> Self {
        let tables = Budget::new(memory_bytes / TABLES_PART);
        let memory = Budget::new(memory_bytes - memory_bytes / TABLES_PART);
        let hidden_bytes = 4 * hosted.widths.hidden as u64;
        // The largest honest frame: text, prefix and their gradients, and tables for each block.
        let frame = u64::from(max_rows) * hidden_bytes * (3 + hosted.span().len() as u64);
        // Half of what a request may take: a reply is about as large as its request and needs room beside it.
        let max_body = frame.min(FrameLimits::default().max_body).min(memory.request_bytes() / 2);
        Self {
            hosted,
            executor,
            speed,
            rendezvous: Arc::default(),
            links,
            memory,
            tables,
            limits: Limits {
                max_rows,
                max_body,
                max_in_flight: MAX_IN_FLIGHT,
                max_adapter: adapter.unwrap_or(max_body),
            },
            next_stream: AtomicU64::new(0),
        }
    }

    /// Memory `of` a party for a reply beside the `held` bytes of its request. Never waits: who waited here would keep its request's memory from others that
    /// wait too.
    pub(super) fn room_for_reply(&self, of: &PartyBudget, bytes: u64, held: u64) -> Result<Reserved, Refusal> {
        let reserved = of.try_reserve(bytes, held);
        reserved.map_err(|no_room| self.no_room(no_room, held.saturating_add(bytes)))
    }

    /// What is said to who wanted so much memory in all.
    pub(super) fn no_room(&self, no_room: NoRoom, got: u64) -> Refusal {
        match no_room {
            NoRoom::Now => Refusal::Busy { retry_after_ms: RETRY_WITHOUT_MEMORY_MS },
            NoRoom::Ever => {
                Refusal::TooLarge { what: "the memory of request and reply".into(), got, limit: self.memory.most() }
            }
        }
    }
}
