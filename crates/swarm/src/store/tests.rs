use super::*;
use crate::identity::Identity;
use crate::keys::block_key;
use crate::record::tests::info;

const TTL: Duration = Duration::from_secs(120);

fn record(identity: &Identity, span: (u32, u32), written_ms: u64) -> Record {
    let info = info(span, written_ms);
    let value = SignedRecord::seal(identity, &info, &[], TTL).unwrap();
    Record::new(server_key(&info.model, &identity.peer_id()), value)
}

fn store() -> DirectoryStore {
    DirectoryStore::new(PeerId::random())
}

fn provider(block: u32, peer: PeerId) -> ProviderRecord {
    ProviderRecord::new(block_key(&"demo@0000000000000001".parse().unwrap(), block), peer, Vec::new())
}

fn blocks_of(store: &DirectoryStore, peer: PeerId) -> Vec<u32> {
    (0..16).filter(|block| store.providers(&provider(*block, peer).key).iter().any(|e| e.provider == peer)).collect()
}

#[test]
fn a_valid_record_is_kept_and_the_later_one_wins() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let (first, second) = (record(&server, (0, 4), now), record(&server, (2, 6), now + 1));
    store.insert(first.clone()).unwrap();
    store.insert(second.clone()).unwrap();
    assert_eq!(store.get(&first.key).unwrap().value, second.value);
    assert!(matches!(store.insert(first), Err(StoreError::Stale)));
    store.insert(second).expect("the same record again is no error");
    assert!(matches!(store.insert(record(&server, (3, 6), now + 1)), Err(StoreError::Stale)));
}

#[test]
fn a_record_under_the_key_of_another_peer_or_model_is_refused() {
    let (mut store, server) = (store(), Identity::generate());
    let mut forged = record(&server, (0, 4), unix_ms());
    forged.key = server_key(&"demo@0000000000000001".parse().unwrap(), &PeerId::random());
    assert!(matches!(store.insert(forged.clone()), Err(StoreError::WrongKey)));
    forged.key = server_key(&"other@0000000000000001".parse().unwrap(), &server.peer_id());
    assert!(matches!(store.insert(forged.clone()), Err(StoreError::WrongKey)));
    assert!(store.put(forged).is_err() && store.records().next().is_none());
}

#[test]
fn stale_tampered_and_oversized_records_are_refused() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let old = record(&server, (0, 4), now - 1_000_000);
    assert!(matches!(store.insert(old), Err(StoreError::Record(SignedRecordError::Expired))));
    let mut tampered = record(&server, (0, 4), now);
    *tampered.value.last_mut().unwrap() ^= 1;
    assert!(matches!(store.insert(tampered), Err(StoreError::Record(SignedRecordError::Signature))));
    let mut long = record(&server, (0, 4), now);
    long.value.resize(1 << 20, 0);
    assert!(matches!(store.insert(long), Err(StoreError::Record(SignedRecordError::TooLong(_)))));
}

#[test]
fn a_record_moves_the_providers_to_its_span() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let peer = server.peer_id();
    store.insert(record(&server, (0, 8), now - 1)).unwrap();
    (0..8).for_each(|block| store.insert_provider(provider(block, peer)).unwrap());
    store.insert(record(&server, (2, 5), now)).unwrap();
    assert_eq!(blocks_of(&store, peer), [2, 3, 4]);
    let mut offline = info((2, 5), now + 1);
    offline.state = ServerState::Offline;
    let value = SignedRecord::seal(&server, &offline, &[], TTL).unwrap();
    store.insert(Record::new(server_key(&offline.model, &peer), value)).unwrap();
    assert!(blocks_of(&store, peer).is_empty());
    assert_eq!(store.provider_count, 0);
}

#[test]
fn one_peer_cannot_fill_the_store() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let result: Result<Vec<_>, _> = (0..=MAX_RECORDS_PER_PEER)
        .map(|number| {
            let mut info = info((0, 1), now);
            info.model = format!("m{number}@0000000000000001").parse().unwrap();
            let value = SignedRecord::seal(&server, &info, &[], TTL).unwrap();
            store.insert(Record::new(server_key(&info.model, &server.peer_id()), value))
        })
        .collect();
    assert!(matches!(result, Err(StoreError::PeerFull)));
    assert!(matches!(
        store.insert_provider(ProviderRecord::new(b"x".to_vec(), server.peer_id(), vec![])),
        Err(StoreError::WrongKey)
    ));
}

#[test]
fn one_block_has_a_bounded_number_of_providers_and_all_are_returned_in_turn() {
    let mut store = store();
    for _ in 0..MAX_PROVIDERS_PER_KEY {
        store.insert_provider(provider(0, PeerId::random())).unwrap();
    }
    assert!(matches!(store.insert_provider(provider(0, PeerId::random())), Err(StoreError::Full)));
    let key = provider(0, PeerId::random()).key;
    let seen: HashSet<_> =
        (0..64).flat_map(|_| store.providers(&key).into_iter().take(20)).map(|e| e.provider).collect();
    assert_eq!(seen.len(), MAX_PROVIDERS_PER_KEY);
}

#[test]
fn what_has_expired_is_neither_returned_nor_kept() {
    let (mut store, server, now) = (store(), Identity::generate(), unix_ms());
    let mut short = provider(0, server.peer_id());
    short.expires = Some(Instant::now());
    store.insert_provider(short).unwrap();
    assert!(blocks_of(&store, server.peer_id()).is_empty());
    let ended = now - TTL.as_millis() as u64 - crate::record::MAX_CLOCK_SKEW.as_millis() as u64 + 50;
    let record = record(&server, (0, 4), ended);
    store.insert(record.clone()).unwrap();
    while store.get(&record.key).is_some() {
        std::thread::yield_now();
    }
    store.expire();
    assert!(store.records.is_empty() && store.providers.is_empty() && store.holdings.is_empty());
}
