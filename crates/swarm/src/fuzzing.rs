//! For fuzz tests: the decoder of what the hash table brings, which nothing outside of this crate calls otherwise.

use libp2p::PeerId;

use crate::identity::Identity;
use crate::record::{SignedRecord, sign};

/// Who signed a record, if it is one to keep at this Unix time in milliseconds.
pub fn open_record(bytes: &[u8], now_ms: u64) -> Option<PeerId> {
    SignedRecord::open(bytes, now_ms).ok().map(|record| record.peer)
}

/// A record with this payload, whatever that is.
pub fn sign_record(identity: &Identity, payload: &[u8]) -> Vec<u8> {
    sign(identity, payload.to_vec()).unwrap_or_default()
}
