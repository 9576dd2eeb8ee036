//! What a server says of itself, in the DHT and when a stream opens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ModelId, Span};
use crate::printable::{MAX_PUBLIC_NAME, MAX_WORD, printable};
use crate::weights::{BlockHashes, WeightsHash};

/// Longest encoded record, in bytes. Kademlia packets end at 16 KiB.
pub const MAX_RECORD_LEN: usize = 8 * 1024;

/// Most entries of [`ServerInfo::next_pings`]: likely next hops, not the whole swarm.
pub const MAX_NEXT_PINGS: usize = 32;

/// Life cycle of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// Loading its blocks: counts for placement, not for routing.
    Joining,
    /// Serving.
    Online,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Gone.
    Offline,
    /// A state that a newer version knows; not to be routed to.
    #[serde(other)]
    Unknown,
}

/// How much of something there is, and how much of it is taken, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// Taken.
    pub used: u64,
    /// There is.
    pub of: u64,
}

/// A server's announcement. Encoded as JSON so that older nodes can read newer records: unknown fields are ignored,
/// optional ones may be missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Model hosted.
    pub model: ModelId,
    /// Blocks hosted.
    pub span: Span,
    /// Blocks of the whole model, as the server knows from its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_blocks: Option<u32>,
    /// Blocks that it is about to host instead. It serves [`Self::span`] until it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<Span>,
    /// What the weights of [`Self::span`] are, block by block, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BlockHashes>,
    /// Life cycle.
    pub state: ServerState,
    /// Unix time in milliseconds at which this was written; of two records of one server the later one counts.
    pub written_ms: u64,
    /// Unix time in milliseconds at which the node started that wrote this, by its own clock. Of two nodes under one identity it
    /// tells which came later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// Tokens per second of forward through the whole span, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_tokens_per_s: Option<f32>,
    /// Steps per second of one token each through the whole span, one session at a time, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_s: Option<f32>,
    /// Bytes per second that its link was seen to carry, learnt from transfers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_bytes_per_s: Option<f32>,
    /// Tokens for which its KV cache has room, if it takes sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_tokens_left: Option<u64>,
    /// Milliseconds of a round trip to servers that host the blocks behind this span, by peer id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub next_pings: BTreeMap<String, f32>,
    /// Reached through a relay only, so every byte passes a third machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relayed: bool,
    /// Passes on the files of its model that it has from the hub.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares_weights: bool,
    /// Requests waiting or running when this was written.
    #[serde(default)]
    pub queue_depth: u32,
    /// Tokens that its blocks took forward since the node started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_tokens: Option<u64>,
    /// Memory for the keys and values of sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<InUse>,
    /// Memory for what training forwards leave for their backwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stash: Option<InUse>,
    /// Where the blocks compute, such as `cpu` or `cuda:0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Dtype the blocks compute in: `f32`, `bf16` or `f16`.
    #[serde(default)]
    pub dtype: String,
    /// Software version.
    #[serde(default)]
    pub version: String,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_name: Option<String>,
}

/// Why bytes are not a [`ServerInfo`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Longer than [`MAX_RECORD_LEN`].
    #[error("the server record has {0} bytes, more than {MAX_RECORD_LEN}")]
    TooLong(usize),
    /// Not the JSON expected.
    #[error("the server record is malformed")]
    Malformed(#[source] serde_json::Error),
    /// A number that no honest server would write.
    #[error("the server record claims an impossible {0}")]
    Impossible(&'static str),
}

impl ServerInfo {
    /// A server of which nothing more is known yet.
    pub fn new(model: ModelId, span: Span, state: ServerState) -> Self {
        Self {
            model,
            span,
            model_blocks: None,
            moving_to: None,
            weights: None,
            state,
            written_ms: 0,
            started_ms: None,
            forward_tokens_per_s: None,
            decode_tokens_per_s: None,
            network_bytes_per_s: None,
            cache_tokens_left: None,
            next_pings: BTreeMap::new(),
            relayed: false,
            shares_weights: false,
            queue_depth: 0,
            served_tokens: None,
            cache: None,
            stash: None,
            device: String::new(),
            dtype: String::new(),
            version: String::new(),
            public_name: None,
        }
    }

    /// The hash of a block's weights, if the server hosts it and says what it has.
    pub fn weights_of(&self, block: u32) -> Option<WeightsHash> {
        let place = block.checked_sub(self.span.start())?;
        self.weights.as_ref()?.as_slice().get(place as usize).copied()
    }

    /// The record's bytes, as signed and stored.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a server record always encodes")
    }

    /// Reads a record. Words for people are cut to what a line of a terminal may show: they are a stranger's.
    ///
    /// # Errors
    /// [`RecordError`] for anything too long, malformed or impossible.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_LEN {
            return Err(RecordError::TooLong(bytes.len()));
        }
        let mut info: Self = serde_json::from_slice(bytes).map_err(RecordError::Malformed)?;
        let rates = [
            ("forward throughput", info.forward_tokens_per_s),
            ("decode throughput", info.decode_tokens_per_s),
            ("network throughput", info.network_bytes_per_s),
        ];
        let possible = |value: &f32| value.is_finite() && *value >= 0.0;
        if let Some((what, _)) = rates.iter().find(|(_, rate)| rate.is_some_and(|rate| !possible(&rate))) {
            return Err(RecordError::Impossible(what));
        }
        if info.next_pings.len() > MAX_NEXT_PINGS || !info.next_pings.values().all(possible) {
            return Err(RecordError::Impossible("list of pings"));
        }
        if info.model_blocks.is_some_and(|blocks| blocks < info.span.end()) {
            return Err(RecordError::Impossible("number of blocks"));
        }
        if info.weights.as_ref().is_some_and(|hashes| hashes.as_slice().len() != info.span.len()) {
            return Err(RecordError::Impossible("list of weights"));
        }
        let name = info.public_name.map(|name| printable(&name, MAX_PUBLIC_NAME).trim().to_owned());
        info.public_name = name.filter(|name| !name.is_empty());
        info.device = printable(&info.device, MAX_WORD);
        info.dtype = printable(&info.dtype, MAX_WORD);
        info.version = printable(&info.version, MAX_WORD);
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Fingerprint;
    use crate::weights::MAX_HASHED_BLOCKS;

    fn info() -> ServerInfo {
        ServerInfo {
            written_ms: 1_700_000_000_000,
            forward_tokens_per_s: Some(1234.5),
            moving_to: Some(Span::new(2, 6).unwrap()),
            weights: BlockHashes::new(vec![WeightsHash([9; 12]); 4], 80),
            next_pings: [("peer".to_owned(), 12.5)].into(),
            shares_weights: true,
            queue_depth: 2,
            served_tokens: Some(77),
            cache: Some(InUse { used: 1, of: 2 }),
            device: "cpu".into(),
            dtype: "f32".into(),
            version: "0.1.0".into(),
            ..ServerInfo::new(
                ModelId::new("demo", Fingerprint([7; 8])).unwrap(),
                Span::new(0, 4).unwrap(),
                ServerState::Online,
            )
        }
    }

    #[test]
    fn round_trips() {
        assert_eq!(ServerInfo::from_json(info().to_json().as_bytes()).unwrap(), info());
    }

    #[test]
    fn a_newer_record_is_read_and_a_minimal_one_too() {
        let newer = info().to_json().replace("\"online\"", "\"hibernating\"").replacen('{', "{\"colour\":[1],", 1);
        assert_eq!(ServerInfo::from_json(newer.as_bytes()).unwrap().state, ServerState::Unknown);
        let minimal = r#"{"model":"m@0000000000000000","span":[1,2],"state":"online","written_ms":1}"#;
        assert_eq!(ServerInfo::from_json(minimal.as_bytes()).unwrap().queue_depth, 0);
    }

    #[test]
    fn words_of_strangers_are_cut_to_what_a_terminal_may_show() {
        let name = format!("\u{1b}]0;title\u{7}home{}", "x".repeat(100));
        let (version, dtype, device) = ("1\n2".into(), "f\u{8}32".into(), "c\u{1b}pu".into());
        let stranger = ServerInfo { public_name: Some(name), version, dtype, device, ..info() };
        let read = ServerInfo::from_json(stranger.to_json().as_bytes()).unwrap();
        let name = read.public_name.unwrap();
        assert!(name.starts_with("]0;titlehomex") && name.chars().count() == MAX_PUBLIC_NAME, "{name:?}");
        assert_eq!((read.version.as_str(), read.dtype.as_str(), read.device.as_str()), ("12", "f32", "cpu"));
        let empty = ServerInfo { public_name: Some("\u{200b} \n".into()), ..info() };
        assert_eq!(ServerInfo::from_json(empty.to_json().as_bytes()).unwrap().public_name, None);
    }

    #[test]
    fn weights_are_told_block_by_block_and_fit_beside_everything_else() {
        for blocks in [170, 171, 500, MAX_HASHED_BLOCKS as u32] {
            let span = Span::new(7.min(blocks / 512), blocks).unwrap();
            let hashes = (0..span.len()).map(|n| WeightsHash([n as u8; 12])).collect();
            let pings = (0..MAX_NEXT_PINGS).map(|n| (format!("12D3KooW{n:044}"), 1_234.567_8)).collect();
            let (weights, model_blocks) = (BlockHashes::new(hashes, blocks as usize), Some(blocks));
            let full = ServerInfo { span, moving_to: Some(span), weights, next_pings: pings, model_blocks, ..info() };
            // A kilobyte is left for addresses, key and signature.
            assert!(full.to_json().len() <= MAX_RECORD_LEN - 1024, "{}", full.to_json().len());
            let read = ServerInfo::from_json(full.to_json().as_bytes()).unwrap();
            assert_eq!(read.weights_of(span.start() + 2), Some(WeightsHash([2; 12]).as_told(blocks as usize)));
            assert_eq!(read.weights_of(span.end()), None);
        }
        let inner = ServerInfo { span: Span::new(7, 11).unwrap(), ..info() };
        assert_eq!((inner.weights_of(6), inner.weights_of(10)), (None, Some(WeightsHash([9; 12]))));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(ServerInfo::from_json(&[b'x'; MAX_RECORD_LEN + 1]), Err(RecordError::TooLong(_))));
        assert!(matches!(ServerInfo::from_json(b"{}"), Err(RecordError::Malformed(_))));
        let fewer = ServerInfo { model_blocks: Some(3), ..info() }.to_json();
        assert!(matches!(ServerInfo::from_json(fewer.as_bytes()), Err(RecordError::Impossible(_))));
        let too_few = ServerInfo { weights: BlockHashes::new(vec![WeightsHash([9; 12]); 3], 80), ..info() }.to_json();
        assert!(matches!(ServerInfo::from_json(too_few.as_bytes()), Err(RecordError::Impossible(_))));
        let empty_span = info().to_json().replace("[0,4]", "[4,4]");
        assert!(ServerInfo::from_json(empty_span.as_bytes()).is_err());
        let negative = info().to_json().replace("1234.5", "-1.0");
        assert!(matches!(ServerInfo::from_json(negative.as_bytes()), Err(RecordError::Impossible(_))));
        let backwards = info().to_json().replace("12.5", "-12.5");
        assert!(matches!(ServerInfo::from_json(backwards.as_bytes()), Err(RecordError::Impossible(_))));
    }
}
