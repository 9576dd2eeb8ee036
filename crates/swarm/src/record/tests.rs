use petals_protocol::{ServerState, Span};

use super::*;

pub(crate) fn info(span: (u32, u32), written_ms: u64) -> ServerInfo {
    let model = "demo@0000000000000001".parse().unwrap();
    let span = Span::new(span.0, span.1).unwrap();
    ServerInfo { written_ms, dtype: "f32".into(), ..ServerInfo::new(model, span, ServerState::Online) }
}

const TTL: Duration = Duration::from_secs(120);
const NOW: u64 = 1_700_000_000_000;

fn sealed(identity: &Identity) -> Vec<u8> {
    SignedRecord::seal(identity, &info((0, 4), NOW), &["/ip4/10.0.0.1/tcp/1".parse().unwrap()], TTL).unwrap()
}

#[test]
fn a_record_round_trips() {
    let identity = Identity::generate();
    let record = SignedRecord::open(&sealed(&identity), NOW).unwrap();
    assert_eq!(record.peer, identity.peer_id());
    assert_eq!(record.info, info((0, 4), NOW));
    assert_eq!(record.addresses, ["/ip4/10.0.0.1/tcp/1".parse().unwrap()]);
    assert_eq!(record.remaining, TTL);
}

#[test]
fn every_changed_byte_is_noticed() {
    let identity = Identity::generate();
    let bytes = sealed(&identity);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        // A changed key may still be a key, but never the one that signed.
        assert!(SignedRecord::open(&changed, NOW).is_err(), "byte {at}");
    }
    assert!(SignedRecord::open(&bytes[..bytes.len() - 1], NOW).is_err());
}

#[test]
fn a_signature_without_the_domain_is_refused() {
    let identity = Identity::generate();
    let mut envelope: Envelope = decode(&sealed(&identity)).unwrap();
    envelope.signature = identity.keypair().sign(&envelope.payload).unwrap();
    assert!(matches!(SignedRecord::open(&encode(&envelope), NOW), Err(SignedRecordError::Signature)));
}

#[test]
fn old_and_future_records_are_refused() {
    let bytes = sealed(&Identity::generate());
    let skew = MAX_CLOCK_SKEW.as_millis() as u64;
    let end = NOW + TTL.as_millis() as u64 + skew;
    assert!(matches!(SignedRecord::open(&bytes, end), Err(SignedRecordError::Expired)));
    assert_eq!(SignedRecord::open(&bytes, end - 5).unwrap().remaining, Duration::from_millis(5));
    assert!(SignedRecord::open(&bytes, NOW - skew).is_ok());
    assert!(matches!(SignedRecord::open(&bytes, NOW - skew - 1), Err(SignedRecordError::Future)));
}

#[test]
fn oversized_records_are_neither_written_nor_read() {
    let mut long = info((0, 4), NOW);
    long.public_name = Some("x".repeat(MAX_RECORD_LEN));
    let result = SignedRecord::seal(&Identity::generate(), &long, &[], TTL);
    assert!(matches!(result, Err(SignedRecordError::TooLong(_))));
    assert!(matches!(SignedRecord::open(&[0; MAX_RECORD_LEN + 1], NOW), Err(SignedRecordError::TooLong(_))));
}

#[test]
fn a_span_beyond_the_largest_model_is_refused() {
    let bytes = SignedRecord::seal(&Identity::generate(), &info((0, MAX_BLOCKS + 1), NOW), &[], TTL).unwrap();
    assert!(matches!(SignedRecord::open(&bytes, NOW), Err(SignedRecordError::Span)));
}
