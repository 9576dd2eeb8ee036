//! Signed records of servers, as they come from the hash table, and key files.

use petals_protocol::encode;
use petals_swarm::{Identity, fuzzing};
use serde::Serialize;

use crate::fuzz;
use crate::wire::info;

/// The codec takes room for a list as its length says, up to 1 MiB, before it finds the list shorter than that.
const MEMORY: usize = (2 << 20) + (64 << 10);
const NOW_MS: u64 = 1_700_000_010_000;

/// As in `crates/swarm/src/record.rs`.
#[derive(Serialize)]
struct Payload {
    info: String,
    addresses: Vec<String>,
    ttl_ms: u32,
}

fn payload(addresses: &[&str]) -> Vec<u8> {
    let addresses = addresses.iter().map(ToString::to_string).collect();
    encode(&Payload { info: info().to_json(), addresses, ttl_ms: 120_000 })
}

fn payloads() -> [Vec<u8>; 2] {
    [payload(&["/ip4/10.0.0.1/tcp/31330", "/ip6/::1/udp/1/quic-v1"]), payload(&[])]
}

/// Damaged after signing: what a stranger can do to a record. Whatever the signature covers is refused.
#[test]
fn records_that_were_tampered_with() {
    let identity = Identity::generate();
    let valid = payloads().map(|payload| fuzzing::sign_record(&identity, &payload));
    fuzz("tampered records", &valid, 200_000, MEMORY, |bytes| match fuzzing::open_record(bytes, NOW_MS) {
        Some(signer) => {
            assert_eq!(signer, identity.peer_id(), "nobody else's key signed this");
            true
        }
        None => false,
    });
}

/// Damaged before signing: what a hostile server can say of itself.
#[test]
fn records_of_hostile_servers() {
    let identity = Identity::generate();
    fuzz("signed records", &payloads(), 100_000, MEMORY, |payload| {
        fuzzing::open_record(&fuzzing::sign_record(&identity, payload), NOW_MS).is_some()
    });
}
