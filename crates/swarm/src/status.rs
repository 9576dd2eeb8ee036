//! What a swarm serves, and what is missing.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::stream;
use libp2p::{Multiaddr, PeerId};
use petals_protocol::{ModelId, ServerInfo, ServerState, Span};

use crate::directory::LookupError;
use crate::keys::MAX_BLOCKS;
use crate::node::SwarmHandle;

/// Models that are looked up at a time.
const PARALLEL: usize = 4;
/// Models that are looked up at all.
const MOST_MODELS: usize = 64;

/// A swarm, as its directory has it.
#[derive(Debug, Clone)]
pub struct SwarmStatus {
    /// The models, by name.
    pub models: Vec<ModelStatus>,
    /// Where each server says that it is.
    pub addresses: HashMap<PeerId, Vec<Multiaddr>>,
    /// Members of the swarm that this node is connected to.
    pub connected: usize,
}

/// A model in a swarm.
#[derive(Debug, Clone)]
pub struct ModelStatus {
    /// Which.
    pub model: ModelId,
    /// Its blocks: those that a server knows of, at least.
    pub blocks: u32,
    /// Servers that hold any of them, by their first block.
    pub servers: Vec<(PeerId, ServerInfo)>,
    /// Seconds since each of them wrote what it says of itself, in the same order.
    pub ages: Vec<u64>,
    /// How many servers hold which blocks, from the first block to the last.
    pub holders: Vec<BlockCount>,
}

/// Neighbouring blocks with equally many servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCount {
    /// The blocks.
    pub span: Span,
    /// Servers that serve them now.
    pub servers: usize,
}

/// Asks a swarm for everything that it serves, or for models of one name.
///
/// # Errors
/// [`LookupError`] if nobody can be asked.
pub async fn swarm_status(swarm: &SwarmHandle, name: Option<&str>) -> Result<SwarmStatus, LookupError> {
    let told = swarm.models().await;
    let wanted = |model: &ModelId| name.is_none_or(|name| name == model.name() || name == model.to_string());
    let told = told.into_iter().filter(|(model, _)| wanted(model)).take(MOST_MODELS);
    let look_up = |(model, blocks): (ModelId, u32)| async move {
        let span = Span::new(0, blocks).ok()?;
        Some(swarm.lookup(&model, span).await.map(|found| {
            let servers = found.into_iter().map(|entry| ((entry.peer, entry.info), (entry.peer, entry.addresses)));
            let (servers, addresses): (Vec<_>, Vec<_>) = servers.unzip();
            (ModelStatus::new(model, blocks, servers), addresses)
        }))
    };
    let found: Vec<_> = stream::iter(told).map(look_up).buffered(PARALLEL).collect().await;
    let (mut models, mut addresses) = (Vec::new(), HashMap::new());
    for found in found.into_iter().flatten() {
        match found {
            // Without a server there is no signed word that the model is there.
            Ok((status, found)) if !status.servers.is_empty() => {
                models.push(status);
                addresses.extend(found);
            }
            Ok(_) => {}
            Err(error @ (LookupError::NotConnected | LookupError::Closed)) => return Err(error),
            Err(error) => tracing::debug!(%error, "a model cannot be looked up"),
        }
    }
    Ok(SwarmStatus { models, addresses, connected: swarm.connected_peers().len() })
}

impl ModelStatus {
    /// What `servers` say of a model that somebody told to have `told` blocks.
    pub fn new(model: ModelId, told: u32, mut servers: Vec<(PeerId, ServerInfo)>) -> Self {
        servers.sort_by_key(|(peer, info)| (info.span, *peer));
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let ages = servers.iter().map(|(_, info)| now_ms.saturating_sub(info.written_ms) / 1000).collect();
        // What servers sign counts, not what somebody told of the model.
        let signed = |info: &ServerInfo| info.model_blocks.unwrap_or(0).max(info.span.end());
        let blocks = servers.iter().map(|(_, info)| signed(info)).max().unwrap_or(told);
        // A signature does not make a number true, and each block takes memory here.
        let blocks = blocks.min(MAX_BLOCKS);
        let holders = holders(blocks, servers.iter().map(|(_, info)| info));
        Self { model, blocks, servers, ages, holders }
    }

    /// Blocks that nobody serves.
    pub fn missing(&self) -> Vec<Span> {
        self.holders.iter().filter(|count| count.servers == 0).map(|count| count.span).collect()
    }
}

fn holders<'a>(blocks: u32, servers: impl Iterator<Item = &'a ServerInfo>) -> Vec<BlockCount> {
    let mut counts = vec![0_usize; blocks as usize];
    for info in servers.filter(|info| info.state == ServerState::Online) {
        for block in info.span.blocks() {
            if let Some(count) = counts.get_mut(block as usize) {
                *count += 1;
            }
        }
    }
    let mut runs: Vec<BlockCount> = Vec::new();
    for (block, servers) in (0..).zip(counts) {
        let longer = runs.last_mut().filter(|run| run.servers == servers);
        match longer.and_then(|run| Some((Span::new(run.span.start(), block + 1).ok()?, run))) {
            Some((span, run)) => run.span = span,
            None => runs.extend(Span::new(block, block + 1).ok().map(|span| BlockCount { span, servers })),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(span: (u32, u32), state: ServerState) -> (PeerId, ServerInfo) {
        let model = "demo@0000000000000001".parse().unwrap();
        (PeerId::random(), ServerInfo::new(model, Span::new(span.0, span.1).unwrap(), state))
    }

    #[test]
    fn blocks_are_counted_by_who_serves_them_now() {
        let model: ModelId = "demo@0000000000000001".parse().unwrap();
        let servers = vec![
            server((4, 6), ServerState::Joining),
            server((0, 3), ServerState::Online),
            server((1, 4), ServerState::Online),
            server((0, 2), ServerState::Draining),
        ];
        let status = ModelStatus::new(model.clone(), 4, servers);
        assert_eq!(status.blocks, 6, "as the servers sign");
        let counts: Vec<_> = status.holders.iter().map(|count| (count.span.to_string(), count.servers)).collect();
        let expected = [("0..1", 1), ("1..3", 2), ("3..4", 1), ("4..6", 0)];
        assert_eq!(counts, expected.map(|(span, servers)| (span.to_owned(), servers)));
        assert_eq!(status.missing(), [Span::new(4, 6).unwrap()]);
        assert_eq!(status.servers[0].1.span.start(), 0);
        let mut known = server((0, 2), ServerState::Online);
        known.1.model_blocks = Some(8);
        assert_eq!(ModelStatus::new(model.clone(), 2, vec![known.clone()]).missing(), [Span::new(2, 8).unwrap()]);
        known.1.model_blocks = Some(u32::MAX);
        assert_eq!(ModelStatus::new(model, 2, vec![known]).blocks, MAX_BLOCKS, "whatever is signed");
    }
}
