//! What a server did.

use std::fmt;

use serde::Serialize;

use super::size;

/// Figures of a period.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Length of the period.
    pub seconds: f64,
    /// Requests that were taken on.
    pub requests: u64,
    /// Tokens that they brought to the blocks, on their way forward.
    pub tokens: u64,
    /// Clients, and servers that pass rows on, that they came from.
    pub clients: usize,
    /// Requests waiting or running at the end.
    pub queue_depth: usize,
    /// Peers that the node is connected to.
    pub peers: usize,
    /// Bytes read from block streams.
    pub bytes_in: u64,
    /// Bytes written to block streams.
    pub bytes_out: u64,
    /// Memory of the process, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// What training forwards left for their backwards.
    pub stash_bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, requests, tokens, clients, queue_depth, peers, bytes_in, bytes_out, .. } = self;
        let (received, sent) = (size(*bytes_in), size(*bytes_out));
        write!(
            f,
            "last {seconds:.0} s: {requests} requests with {tokens} tokens of {clients} clients, {queue_depth} under way, "
        )?;
        write!(f, "{received} in and {sent} out; {peers} peers")?;
        if let Some(memory) = self.resident_bytes {
            write!(f, "; {} of memory", size(memory))?;
        }
        Ok(())
    }
}
