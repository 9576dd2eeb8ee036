//! What comes as text: server records' JSON, spans, model ids, multiaddresses, model configurations.

use petals_e2e::Goldens;
use petals_model::ModelConfig;
use petals_protocol::{MAX_NEXT_PINGS, ModelId, ServerInfo, Span};
use petals_swarm::{Invitation, SwarmKey};

use crate::fuzz;
use crate::wire::info;

const MILLION: u64 = 1_000_000;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[test]
fn server_records_as_json() {
    let minimal = r#"{"model":"m@0000000000000000","span":[1,2],"state":"online","written_ms":1}"#;
    let valid = [info().to_json().into_bytes(), minimal.as_bytes().to_vec()];
    fuzz("server records", &valid, MILLION, 64 << 10, |bytes| {
        let Ok(info) = ServerInfo::from_json(bytes) else { return false };
        assert!(info.next_pings.len() <= MAX_NEXT_PINGS && info.span.start() < info.span.end());
        let again = ServerInfo::from_json(info.to_json().as_bytes()).expect("it was written by this program");
        assert_eq!(again, info);
        true
    });
}

#[test]
fn spans_and_model_ids() {
    let valid = ["0..12", "3..4", "0..4294967295"].map(|text| text.as_bytes().to_vec());
    fuzz("spans", &valid, MILLION, 4096, |bytes| {
        let Some(span) = text(bytes).and_then(|text| text.parse::<Span>().ok()) else { return false };
        assert!(span.start() < span.end() && span.to_string().parse() == Ok(span));
        true
    });
    let valid = ["org/model@0123456789abcdef", "m@0000000000000000"].map(|text| text.as_bytes().to_vec());
    fuzz("model ids", &valid, MILLION, 4096, |bytes| {
        let Some(id) = text(bytes).and_then(|text| text.parse::<ModelId>().ok()) else { return false };
        assert_eq!(id.to_string().parse::<ModelId>().as_ref(), Ok(&id));
        true
    });
}

#[test]
fn addresses_of_peers() {
    let peer = "12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    let valid = [
        format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}"),
        format!("/ip6/::1/udp/31330/quic-v1/p2p/{peer}"),
        format!("/dns4/example.org/tcp/443/p2p/{peer}"),
        format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}"),
    ];
    fuzz("addresses", &valid.map(String::into_bytes), MILLION, 64 << 10, |bytes| {
        let Some(addresses) = text(bytes).and_then(|text| petals_swarm::parse_peers([text]).ok()) else { return false };
        assert!(addresses.iter().all(|address| address.to_string().parse().ok().as_ref() == Some(address)));
        true
    });
}

#[test]
fn invitations() {
    let peer = "12D3KooWSahP5pFRCEfaziPEba7urXGeif6T1y8jmodzdFUvzBHj";
    let peers = petals_swarm::parse_peers([format!("/ip4/203.0.113.5/tcp/1/p2p/{peer}").as_str()]).expect("an address");
    let model = Some("org/model@0123456789abcdef".parse().expect("a model id"));
    let whole = Invitation { peers: peers.clone(), model, swarm_key: Some(SwarmKey::generate()) };
    let plain = Invitation { peers, model: None, swarm_key: None };
    let valid = [whole, plain].map(|invitation| invitation.to_string().into_bytes());
    fuzz("invitations", &valid, MILLION, 64 << 10, |bytes| {
        let Some(invitation) = text(bytes).and_then(|text| text.parse::<Invitation>().ok()) else { return false };
        assert!(!invitation.peers.is_empty());
        let again: Invitation = invitation.to_string().parse().expect("it was written by this program");
        assert!(again.peers == invitation.peers && again.model == invitation.model);
        true
    });
}

#[test]
fn model_configurations() {
    let read = |family: &&str| {
        let goldens = Goldens::load(family).expect("goldens");
        std::fs::read(goldens.model().join("config.json")).expect("config.json")
    };
    let valid: Vec<Vec<u8>> = petals_e2e::FAMILIES.iter().map(read).collect();
    fuzz("model configurations", &valid, MILLION, 256 << 10, |bytes| {
        text(bytes).is_some_and(|text| ModelConfig::from_json(text).is_ok())
    });
}
