//! What a server says of itself, signed: the only value that the hash table holds.
//!
//! A record is an envelope of three byte strings: payload, public key, signature. The signature covers [`DOMAIN`] and the
//! payload. The payload holds the server's [`ServerInfo`] as JSON, its addresses and its life time. Kademlia's own
//! provider records carry neither a payload nor addresses that outlive the query, so both travel here, under the
//! server's signature: nobody else can redirect its clients.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::identity::PublicKey;
use libp2p::{Multiaddr, PeerId};
use petals_protocol::{DecodeError, MAX_RECORD_LEN, RecordError, ServerInfo, decode, encode};
use serde::{Deserialize, Serialize};

use crate::addresses::{MAX_ADDRESS_LEN, MAX_ADDRESSES};
use crate::identity::Identity;
use crate::keys::MAX_BLOCKS;

/// Signed in front of the payload, so that a signature made for another purpose is never a record.
const DOMAIN: &[u8] = b"petals-rs server record v1\0";
/// Clocks of strangers may differ by this much.
pub(crate) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Longest life a record may claim.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(3600);

/// A record whose signature was checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SignedRecord {
    /// Who signed it.
    pub(crate) peer: PeerId,
    /// What it says of itself.
    pub(crate) info: ServerInfo,
    /// Where it says it is.
    pub(crate) addresses: Vec<Multiaddr>,
    /// What is left of its life.
    pub(crate) remaining: Duration,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    payload: Vec<u8>,
    public_key: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    info: String,
    addresses: Vec<String>,
    ttl_ms: u32,
}

/// Why bytes are not a record to keep.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SignedRecordError {
    #[error("the record has {0} bytes, more than {MAX_RECORD_LEN}")]
    TooLong(usize),
    #[error("the record is malformed")]
    Malformed(#[from] DecodeError),
    #[error("the record's public key is malformed")]
    PublicKey,
    #[error("the record's signature is wrong")]
    Signature,
    #[error("the server's description is malformed")]
    Info(#[from] RecordError),
    #[error("the record has too many or malformed addresses")]
    Addresses,
    #[error("the span ends beyond block {MAX_BLOCKS}")]
    Span,
    #[error("the record has expired")]
    Expired,
    #[error("the record was written in the future: a clock is wrong")]
    Future,
    #[error("the record could not be signed")]
    Sign,
}

impl SignedRecord {
    /// Writes and signs a record.
    pub(crate) fn seal(
        identity: &Identity,
        info: &ServerInfo,
        addresses: &[Multiaddr],
        ttl: Duration,
    ) -> Result<Vec<u8>, SignedRecordError> {
        let ttl_ms = u32::try_from(ttl.min(MAX_TTL).as_millis()).unwrap_or(u32::MAX);
        let addresses = addresses.iter().take(MAX_ADDRESSES).map(Multiaddr::to_string).collect();
        let bytes = sign(identity, encode(&Payload { info: info.to_json(), addresses, ttl_ms }))?;
        if bytes.len() > MAX_RECORD_LEN {
            return Err(SignedRecordError::TooLong(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads a record from anyone. `now_ms` is the Unix time in milliseconds.
    pub(crate) fn open(bytes: &[u8], now_ms: u64) -> Result<Self, SignedRecordError> {
        if bytes.len() > MAX_RECORD_LEN {
            return Err(SignedRecordError::TooLong(bytes.len()));
        }
        let envelope: Envelope = decode(bytes)?;
        let key = PublicKey::try_decode_protobuf(&envelope.public_key).map_err(|_| SignedRecordError::PublicKey)?;
        if !key.verify(&signed_bytes(&envelope.payload), &envelope.signature) {
            return Err(SignedRecordError::Signature);
        }
        let payload: Payload = decode(&envelope.payload)?;
        let info = ServerInfo::from_json(payload.info.as_bytes())?;
        if info.span.end() > MAX_BLOCKS {
            return Err(SignedRecordError::Span);
        }
        let ttl = Duration::from_millis(payload.ttl_ms.into()).min(MAX_TTL);
        let remaining = remaining_life(info.written_ms, ttl, now_ms)?;
        Ok(Self { peer: key.to_peer_id(), info, addresses: parse_addresses(&payload.addresses)?, remaining })
    }
}

impl SignedRecord {
    /// By how many milliseconds the clock of a server is ahead that answered with this record of its own just now, if that is why others
    /// refuse it. Servers renew their records in half of their life, so an older one shows a clock that is behind.
    pub(crate) fn clock_offset(bytes: &[u8], server: &PeerId, now_ms: u64) -> Option<i64> {
        let envelope: Envelope = decode(bytes.get(..bytes.len().min(MAX_RECORD_LEN))?).ok()?;
        let key = PublicKey::try_decode_protobuf(&envelope.public_key).ok()?;
        if key.to_peer_id() != *server || !key.verify(&signed_bytes(&envelope.payload), &envelope.signature) {
            return None;
        }
        let payload: Payload = decode(&envelope.payload).ok()?;
        let info = ServerInfo::from_json(payload.info.as_bytes()).ok()?;
        let ttl = Duration::from_millis(payload.ttl_ms.into()).min(MAX_TTL);
        let ahead_ms = (info.written_ms as i64).checked_sub_unsigned(now_ms)?;
        match remaining_life(info.written_ms, ttl, now_ms) {
            Err(SignedRecordError::Future | SignedRecordError::Expired) => Some(ahead_ms),
            _ => None,
        }
    }
}

/// Puts a payload into a signed envelope.
pub(crate) fn sign(identity: &Identity, payload: Vec<u8>) -> Result<Vec<u8>, SignedRecordError> {
    let signature = identity.keypair().sign(&signed_bytes(&payload)).map_err(|_| SignedRecordError::Sign)?;
    let public_key = identity.keypair().public().encode_protobuf();
    Ok(encode(&Envelope { payload, public_key, signature }))
}

fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [DOMAIN, payload].concat()
}

fn parse_addresses(texts: &[String]) -> Result<Vec<Multiaddr>, SignedRecordError> {
    if texts.len() > MAX_ADDRESSES || texts.iter().any(|text| text.len() > MAX_ADDRESS_LEN) {
        return Err(SignedRecordError::Addresses);
    }
    // An address of a kind that this version does not know is left out; the others still serve.
    Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

/// A record lives for `ttl` after it arrives, but replaying an old one does not keep it alive: it must have been written
/// less than `ttl` ago, give or take the difference between two clocks.
fn remaining_life(written_ms: u64, ttl: Duration, now_ms: u64) -> Result<Duration, SignedRecordError> {
    let skew = MAX_CLOCK_SKEW.as_millis() as u64;
    if written_ms > now_ms.saturating_add(skew) {
        return Err(SignedRecordError::Future);
    }
    let end_ms = written_ms.saturating_add(ttl.as_millis() as u64).saturating_add(skew);
    match end_ms.checked_sub(now_ms) {
        None | Some(0) => Err(SignedRecordError::Expired),
        Some(left) => Ok(Duration::from_millis(left).min(ttl)),
    }
}

/// Unix time in milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A time, as members of the hash table tell it to those who ask.
pub(crate) fn written_time(unix_ms: u64) -> Vec<u8> {
    unix_ms.to_le_bytes().to_vec()
}

/// Reads a [`written_time`].
pub(crate) fn read_time(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests;
